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

constexpr int kMostStages = 3;
constexpr int kOctet = 8, kQuads = 2;  // pixels of a warp, in two loads

template <class T>
inline constexpr int kImages = kOf16Bytes<T>;  // of a lane's load
// What a lane has of an octet: [quad][image].
template <class T>
using Octet = float[kQuads][kImages<T>];

template <class T>
__device__ inline void unpack(float (&to)[kImages<T>], const Vector<T, kImages<T>>& from) {
#pragma unroll
  for (int i = 0; i < kImages<T>; ++i) to[i] = from[i];
}

// use(a's element, b's element) for all of two octets.
template <int kQuads, int kImages, class Use>
__device__ inline void for_each(float (&a)[kQuads][kImages], const float (&b)[kQuads][kImages], const Use& use) {
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
#pragma unroll
    for (int i = 0; i < kImages; ++i) use(a[q][i], b[q][i]);
  }
}

// Runs through `stages` stages of `bytes` each in turn, from `first` on. stage(to) begins asynchronous copies to one, or returns
// false if there are no more; use(from) works on it when they are done. Copies to all stages but one are on their way meanwhile.
// What a thread writes to shared memory in stage() may be read by all in the next stage() and use().
template <class Stage, class Use>
__device__ inline void pipeline(char* first, int stages, int bytes, const Stage& stage, const Use& use) {
  char *const end = first + stages * bytes, *to = first, *from = first;
  int ahead = 0;
  const auto next = [&](char*& at) {
    at += bytes;
    if (at == end) at = first;
  };
  for (int step = 1 - stages;; ++step) {
    if (stages < kMostStages) {
      wait_for_copies<0>();
    } else {
      wait_for_copies<kMostStages - 2>();
    }
    __syncthreads();  // what is used next is there, and nobody uses the last one any more
    const bool more = stage(to);
    commit_copies();
    if (more) {
      ++ahead;
      next(to);
    }
    if (ahead == 0) return;
    if (step < 0) continue;
    if (stages == 1) {
      wait_for_copies<0>();
      __syncthreads();
    }
    use(from);
    next(from);
    --ahead;
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
    for (int q = 0; q < kQuads; ++q) unpack(to[q], tost::load<kImages<T>>(reinterpret_cast<const T*>(stage + (places[q] + column))));
  }
};

// The lane's elements of a channel over the target's pixels, [pixel][batch].
template <class T>
struct LaneTargets {
  int64_t at[kQuads];
  int images[kQuads];  // that there are
  bool wide;           // they can be moved by 16 bytes

  __device__ LaneTargets(const Patch& patch, const PatchTile& tile, const Lane<T>& lane, bool wide) : wide(wide) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int pixel = tile.target_pixel(patch, lane.pixel(q));
      const int64_t image = tile.first_image<T>(patch, lane.pixel(q)) + lane.piece * kImages<T>, left = patch.batch - image;
      at[q] = pixel * patch.batch + image;
      images[q] = pixel < 0 || left <= 0 ? 0 : left < kImages<T> ? static_cast<int>(left) : kImages<T>;
    }
  }
  __device__ void store(T* channel, const Octet<T>& from) const {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      T* to = channel + at[q];
      if (wide && images[q]) {
        tost::store<kImages<T>>(to, from[q]);
        continue;
      }
#pragma unroll
      for (int i = 0; i < kImages<T>; ++i) {
        if (i < images[q]) narrow(to[i], from[q][i]);
      }
    }
  }
  // Zeros where there are none.
  __device__ void load(Octet<T>& to, const T* channel) const {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const T* from = channel + at[q];
      if (wide && images[q]) {
        unpack(to[q], tost::load<kImages<T>>(from));
        continue;
      }
#pragma unroll
      for (int i = 0; i < kImages<T>; ++i) to[q][i] = i < images[q] ? widen(from[i]) : 0.f;
    }
  }
};

// Host: the patch of a direct pass, made to fit into shared memory: with fewer stages than the plan asks for, then fewer pixels,
// then smaller chunks, where the index allows any (rows=1). None of them changes a bit of a multiplication's result.
struct DirectPatch {
  Patch patch;
  int stages, octets;
  size_t shared_bytes;

  // tables: of source pixels, beside the stages. with_each: bytes of a stage beside the patch. others: beside all of this, not in
  // shared_bytes.
  DirectPatch(const ConvCall& call, bool transposed, const void* source, int tables, size_t with_each, size_t others) {
    const ConvOptions& o = call.options;
    stages = o.stages, octets = o.pixels / kOctet;
    for (int chunk = o.chunk;;) {
      patch = patch_of(call.shape, transposed, call.bf16, octets * kOctet, chunk, source);
      shared_bytes =
          (static_cast<size_t>(patch.channel_bytes) * chunk + with_each) * stages + static_cast<size_t>(patch.table_bytes()) * tables;
      if (shared_bytes + others <= call.shared_bytes) return;
      if (stages > 1) {
        --stages;
      } else if (octets > 1) {
        octets /= 2;
      } else if (chunk > 1 && o.rows == 1) {
        chunk = (chunk + 1) / 2;
      } else {
        break;
      }
    }
    throw std::runtime_error(
        std::string(call.op) + ": plan: expected chunk=" + std::to_string(patch.chunk) + " to fit into shared memory, but 8 pixels of a " +
        std::to_string(call.shape.kernel[0]) + "x" + std::to_string(call.shape.kernel[1]) + " kernel take " +
        std::to_string(shared_bytes + others) + " bytes, and a block has " + std::to_string(call.shared_bytes));
  }
};

inline unsigned blocks_of(const ConvCall& call, int64_t blocks) {
  if (blocks > std::numeric_limits<int32_t>::max()) {
    throw std::runtime_error(std::string(call.op) + ": expected fewer than 2^31 blocks, got " + std::to_string(blocks));
  }
  return static_cast<unsigned>(blocks);
}

}  // namespace tost
