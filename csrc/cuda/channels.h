// How the elementwise kernels walk over a tensor: as (outer, channels, inner), row-major, which fits all three layouts.
//
// batch-last [C][H][W][N] is outer = 1, inner = H W N; contiguous is outer = N, inner = H W; channels_last is outer = N H W,
// inner = 1. A thread moves V elements, 16 bytes, of each tensor at a time. Where inner > 1 they are neighbours of one channel
// (K = 1); where inner = 1 they are of as many channels (K = V), and neighbouring threads, `lanes` of them, have the next ones,
// so that 128 bytes are read together. Either way a thread stays with its K channels and walks over their positions. Sizes and
// addresses that 16 bytes do not divide are moved element by element (V = K = 1).
//
// A block has the channels of one tile. `splits` blocks share out the positions, and U moves of a thread are on their way at a
// time. There are as many blocks as the GPU runs at once, or so many that its last round does not stand out.
//
// Sums over a channel: threads add in float32, all that is above them (the block; the splits) in float64, which is a few numbers
// and forgives a difference of large sums. Each block leaves one partial sum; who needs the total adds them up, in order. No
// atomics: the same bits every time.
#pragma once

#include <algorithm>
#include <functional>
#include <initializer_list>
#include <limits>

#include "stored.h"

namespace tost {

constexpr int kThreads = 512;     // of a block at most: a power of two
constexpr int kBlocksPerSM = 2;   // that run at once
constexpr int kLanesAcross = 8;   // at most, of K = V channels each
constexpr int kMostLanes = 32;    // of one channel each

// A call of an elementwise op, all its tensors in one memory order. Nothing of torch, as in conv_call.h.
struct ElementwiseCall {
  const char* op;  // for errors
  int64_t outer, channels, inner;
  bool bf16;  // what is stored
  cudaStream_t stream;
  int processors;                              // of the device
  std::function<void*(size_t bytes)> scratch;  // device memory until the call ends, aligned to 256 bytes, uninitialised
};

// How the blocks share out a tensor: block b has the channels of tile b % tiles, and the split b / tiles of their positions.
struct Walk {
  int64_t outer, channels, inner;
  int width = 1;        // V
  bool across = false;  // K = V
  int lanes = 1;        // threads side by side on the channels: a power of two, 1 where inner > 1
  int threads = 32;
  int tiles = 1, splits = 1;
  // A thread's way from move to move: constants, not registers.
  int moves = 0, rest = 0;             // of each thread, and how many threads of a tile have one more
  int row = 0, in_row = 0;             // moves of a row of inner elements; how many a step goes on in it
  int64_t step = 0, next_row = 0;      // elements of a step; what it adds that a row ends
  double share = 0;                    // of an element in its channel: 1 / (outer inner)

  Grid grid(int more = 0) const { return {{static_cast<unsigned>(tiles * splits + more)}, {static_cast<unsigned>(threads)}}; }
};

inline Walk share_out(const ElementwiseCall& call, std::initializer_list<const void*> addresses) {
  Walk w{call.outer, call.channels, call.inner};
  const bool alone = w.inner == 1 && w.channels > 1;  // an element has no neighbour of its channel
  const int width = call.bf16 ? 8 : 4;
  bool fits = (alone ? w.channels : w.inner) % width == 0;
  for (const void* address : addresses) fits = fits && reinterpret_cast<uintptr_t>(address) % 16 == 0;
  if (fits) w.width = width;
  w.across = alone && fits;
  const int64_t groups = w.across ? w.channels / width : w.channels;
  const int most_lanes = w.across ? kLanesAcross : alone ? kMostLanes : 1;
  while (w.lanes < most_lanes && w.lanes < groups) w.lanes *= 2;
  w.tiles = static_cast<int>(ceil_div(groups, w.lanes));

  const int64_t positions = alone ? w.outer : w.outer * (w.inner / w.width);
  while (w.threads < kThreads && w.threads / w.lanes < positions) w.threads *= 2;
  const int64_t each = w.threads / w.lanes, most = std::max<int64_t>(1, ceil_div(positions, each));
  // The time goes with rounds / splits. Few splits are better: every block begins by adding up what all of a tile left.
  const int64_t at_once = int64_t{kBlocksPerSM} * call.processors, first = std::clamp<int64_t>(at_once / w.tiles, 1, most);
  double best = 2;
  for (int64_t splits = first; splits <= std::min(most, first + 7); ++splits) {
    const double time = static_cast<double>(ceil_div(w.tiles * splits, at_once)) / static_cast<double>(splits);
    if (splits > first && time > 0.95 * best) continue;
    best = time;
    w.splits = static_cast<int>(splits);
  }

  w.share = 1. / static_cast<double>(w.outer * w.inner);
  const int64_t threads = w.splits * each, row = alone ? 1 : w.inner / w.width;
  w.moves = static_cast<int>(positions / threads);
  w.rest = static_cast<int>(positions % threads);
  if (w.outer == 1) {
    w.row = std::numeric_limits<int>::max();  // it never ends
    w.step = threads * w.width;
    return w;
  }
  if (row > std::numeric_limits<int>::max() - threads) {  // a place in it, and a step more
    throw std::runtime_error(std::string(call.op) + ": an image of " + std::to_string(w.inner) + " pixels is too large");
  }
  w.row = static_cast<int>(row);
  w.in_row = static_cast<int>(threads % row);
  w.step = threads / row * w.channels * w.inner + w.in_row * w.width;
  w.next_row = (w.channels - 1) * w.inner;
  return w;
}

// work.operator()<T, V, K>(), with these as constants.
template <class Work>
void with_constants(bool bf16, const Walk& w, const Work& work) {
  const auto of_type = [&]<class T>(T) {
    constexpr int V = 16 / sizeof(T);
    if (w.width == 1) {
      work.template operator()<T, 1, 1>();
    } else if (w.across) {
      work.template operator()<T, V, V>();
    } else {
      work.template operator()<T, V, 1>();
    }
  };
  bf16 ? of_type(__nv_bfloat16{}) : of_type(float{});
}

// The first of this thread's K channels. A thread past the last channel has none.
template <int K>
__device__ inline int64_t first_channel(const Walk& w, unsigned block) {
  return (int64_t{block % w.tiles} * w.lanes + threadIdx.x % w.lanes) * K;
}

// Calls visit(at) with the offsets of U of this thread's moves at a time, -1 past the last one. kBackwards begins with what
// another walk would have met last, and may still be in the L2 cache. Offsets are formed by additions: a division a move
// would take as long as its memory access.
template <int V, int K, int U, bool kBackwards, class Visit>
__device__ inline void walk(const Walk& w, unsigned block, const Visit& visit) {
  const int64_t c = first_channel<K>(w, block);
  if (c >= w.channels) return;
  const int each = blockDim.x / w.lanes, q = block / w.tiles * each + threadIdx.x / w.lanes;
  int left = w.moves + (q < w.rest);
  const int64_t last = int64_t{w.moves} * w.splits * each + w.rest - 1, begin = kBackwards ? last - q : q;
  const int64_t o = w.outer == 1 ? 0 : begin / w.row;
  int64_t at = (o * w.channels + c) * w.inner + (begin - o * w.row) * V;
  int i = w.outer == 1 ? 0 : static_cast<int>(begin - o * w.row);
  for (; left > 0; left -= U) {
    int64_t offsets[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      offsets[u] = u < left ? at : -1;
      at += kBackwards ? -w.step : w.step;
      if (K > 1) continue;
      i += kBackwards ? -w.in_row : w.in_row;
      if (kBackwards ? i < 0 : i >= w.row) {
        i += kBackwards ? w.row : -w.row;
        at += kBackwards ? -w.next_row : w.next_row;
      }
    }
    visit(offsets);
  }
}

// Whether move u of a visit exists; the first does.
template <int U>
__device__ inline bool is_move(const int64_t (&at)[U], int u) {
  return u == 0 || at[u] >= 0;
}

// Adds up what this block's threads have of each channel, and leaves it at partial[channel][split].
template <int K>
__device__ inline void write_partial(double* partial, const Walk& w, unsigned block, const double (&sums)[K]) {
  constexpr int kMost = K == 1 ? kMostLanes : kLanesAcross * K;
  SHARED(double, of_warps, kThreads / 32 * kMost);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, channels = w.lanes * K;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    double sum = sums[k];
    for (int bits = 16; bits >= w.lanes; bits /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
    if (lane < w.lanes) of_warps[warp * kMost + lane * K + k] = sum;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < channels; i += blockDim.x) {
    double sum = 0;
    for (int other = 0; other < static_cast<int>(blockDim.x) / 32; ++other) sum += of_warps[other * kMost + i];
    const int64_t c = int64_t{block % w.tiles} * channels + i;
    if (c < w.channels) partial[c * w.splits + block / w.tiles] = sum;
  }
  __syncthreads();  // the next sums come to the same place
}

// Some lanes of a warp, a power of two, which add up partial sums together.
struct Team {
  unsigned lanes, lane;

  // The sum over the splits of one channel, in every lane.
  __device__ double total(const double* partial, int splits) const {
    double sum = 0;
    for (unsigned s = lane; s < static_cast<unsigned>(splits); s += lanes) sum += partial[s];
    for (unsigned bits = lanes / 2; bits; bits /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
    return sum;
  }
  // Whether this lane is the one that writes.
  __device__ bool first() const { return lane == 0; }
};

// Calls use(team, i, exists) for i of 0 .. count - 1, each by one of the teams into which the block's threads part themselves:
// as large as the sums are long, and as small as it takes to do all at once. Where a warp's last teams have none, they
// come along with the last one (a shuffle takes the whole warp), and exists = false.
template <class Use>
__device__ inline void share_out_totals(int64_t count, int splits, const Use& use) {
  unsigned lanes = 1;
  while (lanes < 32 && static_cast<int>(lanes) < splits && lanes * count < blockDim.x) lanes *= 2;
  const unsigned lane = threadIdx.x % 32;
  for (int64_t begin = threadIdx.x / 32 * (32 / lanes); begin < count; begin += blockDim.x / lanes) {
    const int64_t i = begin + lane / lanes;
    use(Team{lanes, lane % lanes}, i < count ? i : count - 1, i < count);
  }
}

}  // namespace tost
