// Forward and input gradient by row groups: how the kernels of conv_gather_kernels.h are launched.

#include "conv_gather_kernels.h"

namespace tost {
namespace {

// kPixels a warp. 128 sums a lane: up to 255 registers for 256 threads; 64: 128 registers for 512, so two blocks of 256 an SM.
template <class Product, int kRowTiles, int kPixels>
void run(const ConvCall& call, const GatherArguments& arguments, int parts) {
  constexpr int kMostThreads = kRowTiles * kPixels * Product::kTiles * 4 > 64 ? 256 : 512;
  GatherArguments g = arguments;
  g.groups_per_block = static_cast<int>(std::min<int64_t>(g.view.groups, std::max(1, std::min(call.options.warps, kMostThreads / 32) / parts)));
  g.row_blocks = static_cast<int>(divide_up(g.view.groups, g.groups_per_block));
  const int warps = g.groups_per_block * parts;
  const size_t stages = static_cast<size_t>(g.stages) * g.patch.stage_bytes() + g.patch.table_bytes();
  const int64_t blocks = g.patch.tiles() * g.row_blocks;
  if (blocks > 0x7fffffff) throw std::runtime_error(std::string(call.op) + ": more blocks than a grid has");
  const Grid grid{{static_cast<unsigned>(blocks)}, {static_cast<unsigned>(warps) * 32}, std::max(stages, static_cast<size_t>(warps) * kSumBytes)};
  launch(call.op, gather_kernel<Product, kRowTiles, kPixels, kMostThreads>, grid, call.stream, g);
}

template <class Product>
void multiply(
    const ConvCall& call, bool transposed, const void* source, const void* values, const void* bias, void* target) {
  constexpr int kMost = 32 / Product::kTiles;  // pixels of a warp: 128 sums a lane with 16 rows
  GatherArguments g{};
  g.patch = fitting_patch(call, transposed, source, g.stages);
  g.view = gather_view(call, transposed, Product::kDepth);
  g.weight = prepare<Product>(call, g.patch, g.view, values);
  g.source = source, g.bias = bias, g.target = target;
  g.wide = call.shape.batch * static_cast<int64_t>(sizeof(typename Product::T)) % 16 == 0 && reinterpret_cast<uintptr_t>(target) % 16 == 0;
  const int pixels = g.patch.y.tile * g.patch.x.tile << g.patch.row_bits;
  if (call.options.rows == 32) return run<Product, 2, kMost / 2>(call, g, pixels / (kMost / 2));
  if (pixels < kMost || call.options.warps > 8) return run<Product, 1, kMost / 2>(call, g, pixels / (kMost / 2));
  run<Product, 1, kMost>(call, g, pixels / kMost);
}

}  // namespace

void gather_multiply(
    const ConvCall& call, bool transposed, const void* source, const void* values, const void* bias, void* target) {
  (call.bf16 ? multiply<Bf16Product> : multiply<Tf32Product>)(call, transposed, source, values, bias, target);
}

}  // namespace tost
