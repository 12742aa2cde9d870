// Stages patches of many convolutions and looks up every tap of every target pixel in them: a program, run under the sanitizers.

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "conv_patch.h"

namespace tost {
namespace {

struct Seen {
  int32_t *target, *wrong;  // of each target element: how often a tile has it; lookups that found something else
};

// Source element (c, y, x, n) is its own number, and 0 outside.
template <class T>
T number(int64_t element) {
  if constexpr (sizeof(T) == 4) {
    return static_cast<T>(element % 8191 + 1);
  } else {
    return __float2bfloat16_rn(static_cast<float>(element % 255 + 1));
  }
}

template <class T>
bool same(T a, T b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

template <class T>
__global__ void look_up(Patch p, ConvShape shape, const T* source, Seen seen) {
  SHARED_DYNAMIC(char, shared);
  int* table = reinterpret_cast<int*>(shared + p.stage_bytes());
  const PatchTile tile = tile_of<T>(p, blockIdx.x);
  if (tile.empty) return;
  write_pixel_table(p, tile, table);
  __syncthreads();
  const bool transposed = p.y.transposed;
  for (int64_t first = 0; first < p.channels; first += p.chunk) {
    stage_patch<T>(p, tile, table, source, shared, p.chunk, [&](int i) { return first + i; });
    commit_copies();
    wait_for_copies<0>();
    __syncthreads();
    const int pixels = p.y.tile * p.x.tile << p.row_bits, images = kRowBytes / static_cast<int>(sizeof(T));
    for (int i = threadIdx.x; i < pixels * images; i += blockDim.x) {
      const int at = tile.target_pixel(p, i / images);
      const int64_t image = tile.first_image<T>(p, i / images) + i % images;
      if (at < 0 || image >= p.batch) continue;
      if (first == 0) ++seen.target[at * p.batch + image];
      const int ty = at / p.x.target, tx = at % p.x.target;
      for (int tap = 0; tap < shape.taps(); ++tap) {
        const int dy = tap / p.x.kernel * p.y.dilation, dx = tap % p.x.kernel * p.x.dilation;
        int sy, sx;
        if (!transposed) {
          sy = ty * p.y.stride - p.y.padding + dy, sx = tx * p.x.stride - p.x.padding + dx;
        } else {
          if (dy % p.y.stride * p.x.stride + dx % p.x.stride != tile.phase(p)) continue;
          sy = ty + p.y.padding - dy, sx = tx + p.x.padding - dx;
          if (sy % p.y.stride || sx % p.x.stride) ++*seen.wrong;  // the phase is not that of the pixel
          sy = sy < 0 ? -1 : sy / p.y.stride, sx = sx < 0 ? -1 : sx / p.x.stride;
        }
        const bool inside = sy >= 0 && sx >= 0 && sy < p.y.source && sx < p.x.source;
        for (int c = 0; c < p.chunk; ++c) {
          const int64_t element = (((first + c) * p.y.source + sy) * p.x.source + sx) * p.batch + image;
          const T want = inside && first + c < p.channels ? number<T>(element) : T{};
          const char* got = shared + p.pixel_place(i / images) + p.column_place(c, tap) + i % images * sizeof(T);
          if (!same(*reinterpret_cast<const T*>(got), want)) ++*seen.wrong;
        }
      }
    }
    __syncthreads();
  }
}

template <class T>
void check(const ConvShape& shape, bool transposed, int pixels, int off) {
  const int64_t channels = transposed ? shape.outputs : shape.channels;
  const int64_t plane = transposed ? shape.out_height * shape.out_width : shape.height * shape.width;
  const int64_t target = transposed ? shape.height * shape.width : shape.out_height * shape.out_width;
  std::vector<T> room(channels * plane * shape.batch + 32 / sizeof(T));
  T* source = room.data();
  while (reinterpret_cast<uintptr_t>(source) % 16) ++source;
  source += off;
  for (int64_t i = 0; i < channels * plane * shape.batch; ++i) source[i] = number<T>(i);
  std::vector<int32_t> seen(target * shape.batch, 0);
  int32_t wrong = 0;
  const Patch p = patch_of(shape, transposed, sizeof(T) == 2, pixels, 8, source);
  const size_t bytes = static_cast<size_t>(p.stage_bytes() + p.table_bytes());
  bool right = p.channel_bytes % 128 == (sizeof(T) == 4 ? 32 : 16) && (p.y.tile * p.x.tile << p.row_bits) == pixels;
  const Grid grid{{static_cast<unsigned>(p.tiles())}, {64}, bytes};
  launch("patch", look_up<T>, grid, nullptr, p, shape, source, Seen{seen.data(), &wrong});
  for (const int32_t times : seen) right = right && times == 1;
  if (right && wrong == 0) return;
  std::printf(
      "batch %d, %dx%d to %dx%d, kernel %dx%d, stride %d %d, padding %d %d, dilation %d %d, transposed %d, pixels %d: %d wrong\n",
      static_cast<int>(shape.batch), static_cast<int>(shape.height), static_cast<int>(shape.width),
      static_cast<int>(shape.out_height), static_cast<int>(shape.out_width), shape.kernel[0], shape.kernel[1], shape.stride[0],
      shape.stride[1], shape.padding[0], shape.padding[1], shape.dilation[0], shape.dilation[1], transposed, pixels, wrong);
  std::exit(1);
}

ConvShape conv(
    int batch, int channels, int outputs, int height, int width, int kh, int kw, int sy, int sx, int py, int px, int dy, int dx) {
  const auto out = [](int in, int k, int s, int p, int d) { return (in + 2 * p - d * (k - 1) - 1) / s + 1; };
  return {batch, channels, height, width, outputs, out(height, kh, sy, py, dy), out(width, kw, sx, px, dx),
          {kh, kw}, {sy, sx}, {py, px}, {dy, dx}, 1, 0};
}

}  // namespace
}  // namespace tost

int main() {
  using tost::conv;
  const tost::ConvShape shapes[] = {
      conv(4, 9, 3, 5, 6, 3, 3, 1, 1, 1, 1, 1, 1),    // more than one tile and chunk
      conv(33, 1, 1, 2, 3, 3, 3, 1, 1, 1, 1, 1, 1),   // a batch that 16 bytes do not divide
      conv(72, 3, 9, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1),   // a linear layer: rows of images for pixels
      conv(8, 2, 2, 7, 7, 1, 1, 2, 2, 0, 0, 1, 1),    // a stride that leaves pixels out
      conv(8, 2, 2, 7, 8, 3, 3, 2, 2, 1, 1, 1, 1),
      conv(8, 2, 2, 8, 5, 3, 2, 2, 3, 1, 0, 1, 1),
      conv(8, 2, 2, 9, 9, 3, 3, 1, 1, 2, 3, 2, 3),    // dilated
      conv(8, 2, 2, 9, 11, 3, 3, 2, 4, 2, 1, 3, 2),   // strided and dilated
      conv(8, 2, 2, 11, 9, 3, 4, 4, 3, 5, 2, 2, 3),
      conv(8, 2, 2, 2, 2, 5, 3, 1, 1, 4, 3, 1, 1),    // padded beyond the kernel
      conv(8, 2, 2, 3, 4, 2, 2, 30000, 20000, 0, 1, 1, 3),  // strided beyond the image: no tiles of lattices without pixels
  };
  for (const auto& shape : shapes) {
    for (const bool transposed : {false, true}) {
      for (const int pixels : {4, 8, 16}) {
        tost::check<float>(shape, transposed, pixels, 0);
        if (pixels == 8) tost::check<__nv_bfloat16>(shape, transposed, pixels, 0);
        if (pixels == 8) tost::check<float>(shape, transposed, pixels, 1);  // not aligned to 16 bytes
      }
    }
  }
}
