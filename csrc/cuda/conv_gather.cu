// Forward and input gradient by row groups: how the kernels of conv_gather_kernels.h are launched.

#include "conv_gather_kernels.h"

namespace tost {
namespace {

constexpr int kFewWarps = 4;  // of a block: with fewer, staging takes longer than computing

// How the row groups and the pixels of a tile are shared out.
struct Division {
  int parts, groups_per_block;
  int64_t row_blocks, blocks;
  int warps() const { return parts * groups_per_block; }
};

// As many groups a block as the plan's warps allow.
Division divide(const ConvCall& call, const GatherArguments& g, int warp_pixels, int most_warps) {
  Division d;
  d.parts = g.patch.tile_pixels() / warp_pixels;
  const int groups = std::min(call.options.warps, most_warps) / d.parts;
  d.groups_per_block = static_cast<int>(std::clamp<int64_t>(groups, 1, g.view.groups));
  d.row_blocks = ceil_div(g.view.groups, d.groups_per_block);
  d.blocks = g.patch.tiles() * d.row_blocks;
  return d;
}

// Whether blocks of half the size, twice as many, would leave the busiest SM no less to do: some would get two of them.
bool fills(const ConvCall& call, int64_t blocks) { return 2 * blocks > call.processors; }

// Fewer groups a block, where SMs would stay empty.
Division spread(const ConvCall& call, const GatherArguments& g, Division d) {
  for (;;) {
    const int fewer = ceil_div(d.groups_per_block, 2);
    if (fills(call, d.blocks) || d.groups_per_block == 1 || fewer * d.parts < kFewWarps) return d;
    d.groups_per_block = fewer;
    d.row_blocks = ceil_div(g.view.groups, fewer);
    d.blocks = g.patch.tiles() * d.row_blocks;
  }
}

// Sums a lane: 128 take up to 255 registers, so 8 warps an SM; 64 take 128 registers, so 16 warps.
template <class Product, int kRowTiles, int kPixels>
struct Variant {
  static constexpr int kMostWarps = kRowTiles * kPixels * Product::kTiles * 4 > 64 ? 8 : 16;

  static Division division(const ConvCall& call, const GatherArguments& g) { return divide(call, g, kPixels, kMostWarps); }

  static void run(const ConvCall& call, GatherArguments g) {
    const Division d = spread(call, g, division(call, g));
    if (d.blocks > 0x7fffffff) throw std::runtime_error(std::string(call.op) + ": more blocks than a grid has");
    g.groups_per_block = d.groups_per_block;
    g.row_blocks = static_cast<int>(d.row_blocks);
    const size_t stages = staging_bytes(g.patch, g.stages);
    const size_t sums = static_cast<size_t>(d.warps()) * kSumBytes;  // in the place of the stages
    const Grid grid{{static_cast<unsigned>(d.blocks)}, {static_cast<unsigned>(d.warps()) * 32}, std::max(stages, sums)};
    launch(call.op, gather_kernel<Product, kRowTiles, kPixels, kMostWarps * 32>, grid, call.stream, g);
  }
};

template <class Product>
void multiply(
    const ConvCall& call, bool transposed, const void* source, const void* values, const void* bias, void* target) {
  constexpr int kMost = 32 / Product::kTiles;  // pixels of a warp: 128 sums a lane with 16 rows
  GatherArguments g{};
  // What fits changes no bit of the result.
  g.patch = fitting_patch(call, transposed, source, g.stages, [](const Patch& p, int stages) {
    return staging_bytes(p, stages) + kMostPixels * sizeof(int);  // and the kernel's targets
  });
  g.view = gather_view(call, transposed, Product::kDepth);
  g.weight = prepare<Product>(call, g.patch, g.view, values);
  g.source = source, g.bias = bias, g.target = target;
  g.wide = on_16_bytes(call.shape.batch, sizeof(typename Product::T), target);
  using Tall = Variant<Product, 2, kMost / 2>;
  using Wide = Variant<Product, 1, kMost>;
  using Small = Variant<Product, 1, kMost / 2>;
  if (call.options.rows == 32) return Tall::run(call, g);
  const bool whole = g.patch.tile_pixels() >= kMost && fills(call, Wide::division(call, g).blocks);
  if (whole && call.options.warps <= Wide::kMostWarps) return Wide::run(call, g);
  Small::run(call, g);
}

}  // namespace

void gather_multiply(
    const ConvCall& call, bool transposed, const void* source, const void* values, const void* bias, void* target) {
  (call.bf16 ? multiply<Bf16Product> : multiply<Tf32Product>)(call, transposed, source, values, bias, target);
}

}  // namespace tost
