// The patch: what a block of a convolution's kernels reads of the source, dense, in shared memory.
//
// A block computes a tile of target pixels times images. The images are one 128-byte row, 32 of float32 or 64 of bfloat16 (of
// small images several rows, so that there is enough to do). Everything that these read of a chunk of source channels is staged
// by 16-byte asynchronous copies as [channel][y][x][images], zeros outside of the image and of the batch. Then every kept weight
// finds its source at: byte offset of its column (`column_place`, the same for all pixels) + offset of the pixel (`pixel_place`).
// The source is read from L2 once for all target channels of the block, (2 + 2) (4 + 2) / (2 * 4) = 3 times for the 2x4 pixels of
// a 3x3 convolution, instead of once for each kept weight.
//
// Banks: a pixel is a multiple of 128 bytes, a channel is that plus 32 (float32) or 16 (bfloat16). So the banks that a column's
// images lie in follow from its channel modulo 4 or 8 alone, whatever its tap; the gathered index orders columns accordingly.
//
// Lattices: the pixels of a tile are neighbours on a lattice of the target. Forward without dilation that is the image itself.
// With dilation, pixels that are apart by dilation / gcd(stride, dilation) read the same source pixels, so each residue is a
// lattice of its own; the gradient of the input reads through a stride different taps at each residue modulo the stride (the
// phase of the index's segments). On its lattice every convolution is one whose taps are neighbours: no holes in the patch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "conv_call.h"
#include "mma.h"

namespace tost {

constexpr int kRowBytes = 128;  // of a pixel's images

// One axis of a convolution, from the side of the target.
struct PatchAxis {
  int kernel, stride, padding, dilation;
  int source, target;  // pixels
  bool transposed;
  int common;    // gcd(stride, dilation)
  int lattices;  // on the target that have pixels there
  int tile;      // target pixels of a block
  int tiles;     // of the largest lattice
  int step;      // lattice units of the source between neighbours of a tile
  int pitch;     // the same in the patch, which leaves out what lies between the windows of neighbours
  int extent;    // pixels of the patch
};

// One lattice of an axis.
struct Lattice {
  int first, every, count;  // its target pixels: first + i * every, i < count
  int origin, unit;         // its source pixels: origin + j * unit, any j; window of target pixel i: from j = i * step
  int taps;                 // of the window
  int phase;                // residue of the taps that it reads modulo the stride (transposed)
  int tap;                  // the first of them (transposed)
};

// The one of target pixel `first`, first < lattices.
__host__ __device__ inline Lattice lattice_of(const PatchAxis& a, int first) {
  const int apart = a.dilation / a.common;
  Lattice l{};
  if (!a.transposed) {
    l = {first, apart, 0, a.stride * first - a.padding, a.dilation, a.kernel, 0, 0};
  } else {
    l.first = first;
    l.every = a.stride * apart;
    l.unit = apart;
    l.phase = (first + a.padding) % a.stride;
    const int between = a.stride / a.common;  // two taps of a phase
    while (l.tap < between && l.tap < a.kernel && l.tap * a.dilation % a.stride != l.phase) ++l.tap;
    if (l.tap < between && l.tap < a.kernel) {
      l.taps = (a.kernel - 1 - l.tap) / between + 1;
      const int last = l.tap + (l.taps - 1) * between;  // the one that reads the window's first pixel
      l.origin = (first + a.padding - last * a.dilation) / a.stride;  // exact
    }
  }
  l.count = ceil_div(a.target - first, l.every);
  return l;
}

// Where in the window of a target pixel its tap d lies, which is of the right phase.
__host__ __device__ inline int tap_place(const PatchAxis& a, int d) {
  if (!a.transposed) return d;
  const int between = a.stride / a.common, first = d % between;
  return (a.kernel - 1 - first) / between - d / between;  // from the last tap of the phase on
}

struct Patch {
  PatchAxis y, x;
  int row_bits;       // a pixel has 1 << row_bits rows of images
  int chunk;              // channels
  int64_t channel_bytes;  // from one channel to the next
  int64_t channels, batch;  // of the source
  int64_t channel_elements;
  int64_t image_tiles;
  bool wide;  // 16 bytes divide the rows of the batch

  __host__ __device__ int pixel_bytes() const { return kRowBytes << row_bits; }
  __host__ __device__ int64_t pixels() const { return int64_t{y.extent} * x.extent; }  // what fits shared memory is 32 bits
  __host__ __device__ int tile_pixels() const { return y.tile * x.tile << row_bits; }  // rows of images: target pixels, or more
  __host__ __device__ int64_t stage_bytes() const { return chunk * channel_bytes; }
  // Beside the stages: the source pixel of each pixel of the patch, an int32 each.
  __host__ __device__ int64_t table_bytes() const { return (pixels() * 4 + 15) / 16 * 16; }
  __host__ __device__ int64_t tiles() const {
    return image_tiles * y.lattices * x.lattices * y.tiles * x.tiles;
  }

  // Bytes from the begin of a stage to the window of the tile's pixel p, p < tile_pixels(); its rows are neighbours.
  __host__ __device__ int pixel_place(int p) const {
    const int pixel = p >> row_bits, row = p - (pixel << row_bits);
    return ((pixel / x.tile * y.pitch * x.extent + pixel % x.tile * x.pitch) << row_bits | row) * kRowBytes;
  }
  // Bytes from there to what the column channel * taps + tap reads.
  __host__ __device__ int column_place(int channel_in_chunk, int tap) const {
    const int pixel = tap_place(y, tap / x.kernel) * x.extent + tap_place(x, tap % x.kernel);
    return channel_in_chunk * channel_bytes + pixel * pixel_bytes();
  }
};

// The tile of a block.
struct PatchTile {
  Lattice y, x;
  int at_y, at_x;  // its first pixel on the lattice
  int64_t image;   // its first image
  bool empty;      // of a lattice that has fewer tiles

  __device__ int phase(const Patch& p) const { return y.phase * p.x.stride + x.phase; }  // of the transposed index's segments
  // The target's pixel p of the tile, as y * width + x; -1: it has none there.
  __device__ int target_pixel(const Patch& patch, int p) const {
    const int i = at_y + (p >> patch.row_bits) / patch.x.tile, j = at_x + (p >> patch.row_bits) % patch.x.tile;
    if (i >= y.count || j >= x.count) return -1;
    return (y.first + i * y.every) * patch.x.target + x.first + j * x.every;
  }
  // The first image of its row.
  template <class T>
  __device__ int64_t first_image(const Patch& patch, int p) const {
    return image + (p & ((1 << patch.row_bits) - 1)) * (kRowBytes / static_cast<int>(sizeof(T)));
  }
};

// Whether every row of a batch begins at a multiple of 16 bytes.
inline bool on_16_bytes(int64_t batch, int64_t element_bytes, const void* memory) {
  return batch * element_bytes % 16 == 0 && reinterpret_cast<uintptr_t>(memory) % 16 == 0;
}

// Host: the patch of a pass of `shape`, transposed: of the gradient of its output. `source` only for its alignment.
inline Patch patch_of(const ConvShape& shape, bool transposed, bool bf16, int pixels, int chunk, const void* source) {
  const auto axis = [&](int which) {
    const int in = static_cast<int>(which ? shape.width : shape.height);
    const int out = static_cast<int>(which ? shape.out_width : shape.out_height);
    PatchAxis a{};
    a.kernel = shape.kernel[which], a.stride = shape.stride[which];
    a.padding = shape.padding[which], a.dilation = shape.dilation[which];
    a.transposed = transposed;
    a.source = transposed ? out : in, a.target = transposed ? in : out;
    a.common = std::gcd(a.stride, a.dilation);
    a.lattices = std::min(a.dilation / a.common * (transposed ? a.stride : 1), a.target);
    a.step = transposed ? 1 : a.stride / a.common;
    a.tile = 1;
    return a;
  };
  Patch p{axis(0), axis(1), 0, chunk, 0, transposed ? shape.outputs : shape.channels, shape.batch, 0, 0, false};
  const int element = bf16 ? 2 : 4, images = kRowBytes / element;
  const int height = ceil_div(p.y.target, p.y.lattices), width = ceil_div(p.x.target, p.x.lattices);
  while (p.tile_pixels() < pixels) {
    const bool more_x = p.x.tile < width, more_y = p.y.tile < height;
    if (more_x && (p.x.tile <= p.y.tile || !more_y)) {
      p.x.tile *= 2;
    } else if (more_y) {
      p.y.tile *= 2;
    } else {
      ++p.row_bits;
    }
  }
  for (PatchAxis* a : {&p.y, &p.x}) {
    const int window = transposed ? ceil_div(a->kernel, a->stride / a->common) : a->kernel;
    a->pitch = std::min(a->step, window);
    a->extent = (a->tile - 1) * a->pitch + window;
    a->tiles = ceil_div(ceil_div(a->target, a->lattices), a->tile);
  }
  p.channel_bytes = p.pixels() * p.pixel_bytes() + (bf16 ? 16 : 32);
  p.image_tiles = ceil_div(shape.batch, int64_t{images} << p.row_bits);
  p.channel_elements = int64_t{p.y.source} * p.x.source * p.batch;
  p.wide = on_16_bytes(shape.batch, element, source);
  return p;
}

// Host: the patch that the options of `call` ask for, with fewer stages and then fewer pixels where shared memory does not hold
// them. stages: what is left of them. bytes_of(patch, stages): the shared memory of a block, static too. Throws where nothing fits.
template <class BytesOf>
Patch fitting_patch(const ConvCall& call, bool transposed, const void* source, int& stages, const BytesOf& bytes_of) {
  size_t bytes = 0;
  for (int pixels = call.options.pixels; pixels >= 4; pixels /= 2) {
    const Patch p = patch_of(call.shape, transposed, call.bf16, pixels, call.options.chunk, source);
    for (stages = call.options.stages; stages >= 1; --stages) {
      bytes = bytes_of(p, stages);
      if (bytes <= call.shared_bytes) return p;
    }
  }
  throw std::runtime_error(
      std::string(call.op) + ": plan: expected chunk=" + std::to_string(call.options.chunk) +
      " to fit into shared memory, but 4 pixels of a " + std::to_string(call.shape.kernel[0]) + "x" +
      std::to_string(call.shape.kernel[1]) + " kernel take " + std::to_string(bytes) + " bytes, and a block has " +
      std::to_string(call.shared_bytes));
}

// Host: a patch of the pixels of the tiles of `like` themselves: what the values' gradient reads of the output's gradient.
inline Patch patch_of_targets(const Patch& like, int64_t channels, bool bf16, int chunk, const void* source) {
  Patch p = like;
  for (PatchAxis* a : {&p.y, &p.x}) {
    a->source = a->target;
    a->extent = a->tile;
    a->pitch = a->step = 1;
  }
  p.chunk = chunk;
  p.channels = channels;
  p.channel_bytes = p.pixels() * p.pixel_bytes() + (bf16 ? 16 : 32);
  p.channel_elements = int64_t{p.y.source} * p.x.source * p.batch;
  p.wide = on_16_bytes(p.batch, bf16 ? 2 : 4, source);
  return p;
}

// Tile number `index`: neighbours in x first, for what they share to meet in L2. 32 bits: a division of 64 takes longer by far.
template <class T>
__device__ inline PatchTile tile_of(const Patch& p, unsigned index) {
  const auto digit = [&](unsigned base) {
    const unsigned rest = index / base, d = index - rest * base;
    index = rest;
    return static_cast<int>(d);
  };
  PatchTile t;
  t.at_x = digit(p.x.tiles) * p.x.tile;
  t.at_y = digit(p.y.tiles) * p.y.tile;
  t.x = lattice_of(p.x, digit(p.x.lattices));
  t.y = lattice_of(p.y, digit(p.y.lattices));
  t.image = int64_t{index} * ((kRowBytes / static_cast<int>(sizeof(T))) << p.row_bits);
  t.empty = t.at_x >= t.x.count || t.at_y >= t.y.count;
  return t;
}

// The source pixel of each pixel of the patch, y * width + x, or -1, into `table` (shared memory). A barrier must follow.
__device__ inline void write_pixel_table(const Patch& p, const PatchTile& t, int* table) {
  const auto source = [](const PatchAxis& a, const Lattice& l, int at, int r) {
    if (r >= (a.tile - 1) * a.pitch + l.taps) return -1;
    const int i = r < (a.tile - 1) * a.pitch ? r / a.pitch : a.tile - 1;  // whose window it is in
    const int s = l.origin + ((at + i) * a.step + r - i * a.pitch) * l.unit;
    return s < a.source ? s : -1;
  };
  for (int i = threadIdx.x; i < p.pixels(); i += blockDim.x) {
    const int y = source(p.y, t.y, t.at_y, i / p.x.extent), x = source(p.x, t.x, t.at_x, i % p.x.extent);
    table[i] = y < 0 || x < 0 ? -1 : y * p.x.source + x;
  }
}

// The same for a patch of `patch_of_targets`.
__device__ inline void write_target_table(const Patch& p, const PatchTile& t, int* table) {
  for (int i = threadIdx.x; i < p.pixels(); i += blockDim.x) table[i] = t.target_pixel(p, i << p.row_bits);
}

// Begins to copy `count` channels to `to`, a stage in shared memory; channel i is channel_of(i) of the source, none if that is
// negative or too large. All threads of the block; ends with no commit_copies. Eight threads have a row of images of a pixel, and
// go through the channels with it: what they do for each is little more than the copy.
template <class T, class ChannelOf>
__device__ inline void stage_patch(
    const Patch& p, const PatchTile& t, const int* table, const T* source, char* to, int count, const ChannelOf& channel_of) {
  constexpr int kPieces = kRowBytes / 16, kElements = 16 / sizeof(T);
  const int rows = static_cast<int>(p.pixels()) << p.row_bits, lanes = blockDim.x / kPieces;  // there are, and at once
  const int piece = threadIdx.x % kPieces, lane = threadIdx.x / kPieces;
  const int abreast = rows < lanes ? lanes / rows : 1, first = rows < lanes ? lane / rows : 0;  // channels at once
  if (first >= abreast) return;
  for (int row = lane - first * rows; row < rows; row += lanes) {
    const int pixel = table[row >> p.row_bits];
    const int64_t image = t.image + ((row & ((1 << p.row_bits) - 1)) * kPieces + piece) * kElements;
    const int64_t left = pixel < 0 ? 0 : p.batch - image;
    const int images = left < 0 ? 0 : left < kElements ? static_cast<int>(left) : kElements;
    const T* from = images > 0 ? source + pixel * p.batch + image : source;
    char* at = to + row * kRowBytes + piece * 16;
    const auto walk = [&](const auto& copy) {
      for (int channel = first; channel < count; channel += abreast) {
        const int c = static_cast<int>(channel_of(channel));
        const bool none = c < 0 || c >= static_cast<int>(p.channels);
        T* channel_at = reinterpret_cast<T*>(at + channel * static_cast<int>(p.channel_bytes));
        copy(channel_at, from + (none ? 0 : c * p.channel_elements), none ? 0 : images);
      }
    };
    if (p.wide) {
      walk([](T* channel_at, const T* channel_from, int some) { copy_async<16>(channel_at, channel_from, some > 0 ? 16 : 0); });
    } else {
      walk([](T* channel_at, const T* channel_from, int some) {
#pragma unroll 1  // seldom, and of no use to hold registers for
        for (int e = 0; e < kElements; ++e) channel_at[e] = e < some ? channel_from[e] : T{};
      });
    }
  }
}

}  // namespace tost
