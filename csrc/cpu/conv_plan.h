// How a convolution is cut into tasks. Every rule here depends on shapes and on the pattern only, except the number of
// row chunks, which does not change any sum.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "conv_job.h"
#include "isa.h"

namespace tost {

struct ConvOptions {
  Tile tile{0, 0, 0};  // 0: chosen by the static rule
  int64_t block = 0;   // source channels packed at a time; 0: chosen by the static rule
};

enum class ConvPass { forward, input_grad, values_grad };

// What a plan string asks of one pass: "", or with commas between them "tile=4x4", "tile=2x2x4" (rows x columns x batch
// vectors) and "block=32". A plan is one string for all three passes: a key with a prefix, "input_grad.block=64", holds for
// that pass alone and there overrides the plain one, wherever it stands. The whole string is checked at every pass.
ConvOptions parse_options(const char* op, const std::string& plan, ConvPass pass);

// One spatial axis as far as the choice of a tile needs it.
struct AxisNeed {
  int64_t count;   // result pixels of a phase
  int64_t planes;  // about how many planes, and
  int64_t halo;    // by how much they exceed the tile
  bool near;       // as many source pixels as result pixels, and taps at -1, 0 and +1 alone
};

struct TileNeed {
  AxisNeed y, x;
  int64_t batch;
  double weights_per_channel;  // kept weights of one source channel: the work that one packed channel feeds
};

int64_t lanes(Isa isa);

Tile choose_tile(const char* op, const ConvOptions& options, const TileNeed& need, Isa isa);

// On which axes the kernels for this tile are compiled for each shift (see lattice.h): near ones that the tile covers.
struct Known {
  bool y, x;
};

Known shifts_known(const Tile& tile, const TileNeed& need, Isa isa);

// Source channels packed at a time: enough for the runs of kept weights to outweigh loading and storing the partial
// sums, few enough for the packed tile to stay in the cache. A multiple of `multiple` (the index's own block), or all.
// gathers: forward or input gradient. channel_numbers: of one packed channel.
int64_t choose_block(
    const ConvOptions& options, Isa isa, bool gathers, int64_t channels, int64_t channel_numbers, int64_t multiple,
    double weights_per_row_and_channel, int64_t classes);

}  // namespace tost
