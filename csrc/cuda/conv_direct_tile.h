// What the direct kernels have in common: how a warp's lanes share out the pixels and images of a patch, and how large a patch is.
//
// A warp computes eight target pixels of one 128-byte row of images at a time: four and four of them, each lane 16 bytes of two. A
// kept weight thus costs two loads of 16 bytes a lane. The eight lanes of a pixel read 128 neighbouring bytes, which is what
// shared memory delivers in a clock: four clocks a load wherever the four pixels lie.
#pragma once

#include <limits>

#include "conv_patch.h"
#include "stored.h"

namespace tost {

constexpr size_t kSharedOfBlock = size_t{163} << 10;  // that every GPU from sm_80 on has
constexpr int kOctet = 8, kQuads = 2;  // pixels of a warp, in two loads

template <class T>
inline constexpr int kImages = kOf16Bytes<T>;  // of a lane's load
// What a lane has of an octet: [quad][image].
template <class T>
using Octet = float[kQuads][kImages<T>];

// use(a's element, b's element) for all of two octets.
template <int kQuads, int kImages, class Use>
__device__ inline void for_each(float (&a)[kQuads][kImages], const float (&b)[kQuads][kImages], const Use& use) {
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
#pragma unroll
    for (int i = 0; i < kImages; ++i) use(a[q][i], b[q][i]);
  }
}

__device__ inline void wait_for_all_but(int groups) {
  if (groups == 0) {
    wait_for_copies<0>();
  } else {
    wait_for_copies<1>();
  }
}

// The lane's pixels and images of an octet of the tile.
template <class T>
struct Lane {
  int first, piece;  // pixel of the first quad, and which 16 bytes of its row of images

  __device__ explicit Lane(int octet)
      : first(octet * kOctet + static_cast<int>(threadIdx.x) % 32 / 8), piece(static_cast<int>(threadIdx.x) % 8) {}
  __device__ int pixel(int quad) const { return first + quad * (kOctet / kQuads); }
  // Bytes from the begin of a stage.
  __device__ int place(const Patch& patch, int quad) const { return patch.pixel_place(pixel(quad)) + piece * 16; }
  __device__ void load(Octet<T>& to, const char* stage, const int (&places)[kQuads], int column) const {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) load_16_bytes<T>(to[q], stage + (places[q] + column));
  }
};

// The lane's elements of a tensor [channel][pixel][batch] over the target's pixels.
template <class T>
struct LaneTargets {
  int64_t at[kQuads], channel;  // of channel 0, -1: none; from one channel to the next
  int images[kQuads];           // that there are
  bool wide;

  __device__ LaneTargets(const Patch& patch, const PatchTile& tile, const Lane<T>& lane, bool wide)
      : channel(int64_t{patch.y.target} * patch.x.target * patch.batch), wide(wide) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int pixel = tile.target_pixel(patch, lane.pixel(q));
      const int64_t image = tile.first_image<T>(patch, lane.pixel(q)) + lane.piece * kImages<T>;
      at[q] = pixel < 0 || image >= patch.batch ? -1 : pixel * patch.batch + image;
      images[q] = static_cast<int>(std::min<int64_t>(patch.batch - image, kImages<T>));
    }
  }
  __device__ void store(T* to, int64_t c, const Octet<T>& from) const {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      if (at[q] < 0) continue;
      T* first = to + (c * channel + at[q]);
      if (wide) {
        store_16_bytes(first, from[q]);
        continue;
      }
#pragma unroll
      for (int i = 0; i < kImages<T>; ++i) {
        if (i < images[q]) narrow(first[i], from[q][i]);
      }
    }
  }
  // Zeros where there are none.
  __device__ void load(Octet<T>& to, const T* from, int64_t c) const {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const T* first = from + (c * channel + at[q]);
      if (wide && at[q] >= 0) {
        load_16_bytes<T>(to[q], first);
        continue;
      }
#pragma unroll
      for (int i = 0; i < kImages<T>; ++i) to[q][i] = at[q] >= 0 && i < images[q] ? widen(first[i]) : 0.f;
    }
  }
};

// Host: the patch of a direct pass, made to fit a block's shared memory: with fewer stages than the plan asks for, then with
// smaller chunks, where the index allows any.
struct DirectPatch {
  Patch patch;
  int pixels, stages;
  size_t shared_bytes;

  DirectPatch(const ConvCall& call, bool transposed, const void* source, int tables = 1, size_t others = 0) : pixels(call.options.pixels) {
    if (pixels % kOctet != 0 || call.options.warps % (pixels / kOctet) != 0) {
      throw std::runtime_error(
          std::string(call.op) + ": plan: expected pixels=8 or 16 with algo=direct, got " + std::to_string(pixels));
    }
    stages = std::clamp(call.options.stages, 1, 3);
    int chunk = call.options.chunk;

    for (;;) {
      patch = patch_of(call.shape, transposed, call.bf16, pixels, chunk, source);
      shared_bytes = static_cast<size_t>(patch.chunk) * patch.channel_bytes * stages + static_cast<size_t>(tables) * patch.table_bytes();
      if (shared_bytes + others <= kSharedOfBlock) return;
      if (stages > 1) {
        --stages;
      } else if (chunk > 1 && call.options.rows == 1) {
        chunk = (chunk + 1) / 2;
      } else {
        break;
      }
    }
    throw std::runtime_error(
        std::string(call.op) + ": the " + std::to_string(call.shape.kernel[0]) + "x" + std::to_string(call.shape.kernel[1]) +
        " kernel needs " + std::to_string(shared_bytes) + " bytes of shared memory a block for chunk=" + std::to_string(chunk) +
        " and pixels=" + std::to_string(pixels) + ", expected at most " + std::to_string(kSharedOfBlock));
  }
};

inline unsigned blocks_of(const ConvCall& call, int64_t blocks) {
  if (blocks > std::numeric_limits<int32_t>::max()) {
    throw std::runtime_error(std::string(call.op) + ": expected fewer than 2^31 blocks, got " + std::to_string(blocks));
  }
  return static_cast<unsigned>(blocks);
}

}  // namespace tost
