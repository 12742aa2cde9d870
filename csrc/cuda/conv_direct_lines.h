// The kept weights as the direct kernels run through them: decoded once a pass by a small kernel, instead of in every block. A
// weight's column becomes its byte offset in the patch, its value float32; both lie side by side, so that one load, the same for
// all lanes, fetches them.
//
// A line is a channel of the target (from the packed index alone) or kRows channels that share columns (from a gathered index of
// depth 1). What it keeps in a chunk of source channels, of one phase, is a run. Weights stay in the order of the index, except
// that those of a phase come together.
#pragma once

#include <utility>

#include "conv_patch.h"
#include "gather_index.h"
#include "stored.h"

namespace tost {

constexpr int kWarp = 32, kDecodeThreads = 256;
constexpr unsigned kAllLanes = 0xffffffffu;

struct alignas(8) Run {
  int begin, end;
};

template <int kRows>
struct alignas(kRows == 1 ? 8 : 16) Kept {
  float weight[kRows];
  int place;  // Patch::column_place
};

// All lines of a pass.
template <int kRows>
struct Lines {
  const Kept<kRows>* kept;
  const Run* runs;       // [phase][chunk][line]
  const int32_t* order;  // [line][kRows]: its channels, -1: none; null: line i is channel i
  int count, chunks;
};

// The phases of taps: of the residues of the target's pixels modulo the stride each reads other taps.
__host__ __device__ inline int phases_of(const Patch& p) { return p.y.transposed ? p.y.stride * p.x.stride : 1; }
__device__ inline int phase_of(const Patch& p, int tap) {
  return tap / p.x.kernel * p.y.dilation % p.y.stride * p.x.stride + tap % p.x.kernel * p.x.dilation % p.x.stride;
}

// The packed index from the side of the target.
struct MaskWalk {
  const int32_t *ptr, *column, *position;  // position: of a weight in `values`; null where that is its place here
  bool transposed;
  int lines, blocks, taps;  // target channels; entries of ptr a row; of the kernel
  int lines_per_group;      // group g has the lines from g * lines_per_group, the source channels from g * channels_per_group
  int channels_per_group;

  static constexpr int kBlock = 8, kHeader = 16;  // tost_kernels/packed_index.py

  MaskWalk(const ConvShape& s, const int32_t* index, bool transposed) : position(nullptr), transposed(transposed), taps(s.taps()) {
    const auto outputs = static_cast<int>(s.outputs), inputs = static_cast<int>(s.channels / s.groups);
    lines = outputs;
    lines_per_group = static_cast<int>(outputs / s.groups);
    channels_per_group = inputs;
    blocks = ceil_div(inputs, kBlock);
    ptr = index + kHeader;
    column = ptr + int64_t{outputs} * blocks + 1;
    if (!transposed) return;
    lines = static_cast<int>(s.channels);
    std::swap(lines_per_group, channels_per_group);
    blocks = ceil_div(outputs, kBlock);
    ptr = column + s.nnz;
    column = ptr + int64_t{inputs} * blocks + 1;
    position = column + s.nnz;
  }

  // Input channels count within their group, outputs do not: what to add to a column's channel.
  __device__ int first_channel(int line) const { return transposed ? 0 : line / lines_per_group * channels_per_group; }

  // What a line keeps of the source channels [begin, end): positions in `column`. By a whole warp.
  __device__ Run run(int line, int begin, int end) const {
    const int group = line / lines_per_group * channels_per_group, shift = first_channel(line);
    begin = std::max(begin, group) - shift;
    end = std::min(end, group + channels_per_group) - shift;
    if (begin >= end) return {0, 0};
    const int64_t row = int64_t{transposed ? line % lines_per_group : line} * blocks;
    const int first = ptr[row + begin / kBlock], last = ptr[row + ceil_div(end, kBlock)];
    Run run{first, first};
    for (int k = first; k < last; k += kWarp) {  // at both ends may be channels that are not of the run
      const int at = k + static_cast<int>(threadIdx.x) % kWarp;
      const int channel = at < last ? column[at] / taps : end;
      run.begin += __popc(__ballot_sync(kAllLanes, channel < begin));
      run.end += __popc(__ballot_sync(kAllLanes, channel < end));
    }
    return run;
  }
};

// A warp decodes what a line keeps in a chunk.
template <class T>
static __global__ void __launch_bounds__(kDecodeThreads)
decode_kept(MaskWalk walk, Patch patch, int chunks, const T* values, Kept<1>* kept, Run* runs) {
  const int64_t unit = int64_t{blockIdx.x} * (kDecodeThreads / kWarp) + threadIdx.x / kWarp;
  const int line = static_cast<int>(unit / chunks), chunk = static_cast<int>(unit % chunks);
  if (line >= walk.lines) return;
  const int lane = threadIdx.x % kWarp, before = chunk * patch.chunk - walk.first_channel(line);
  const Run all = walk.run(line, chunk * patch.chunk, (chunk + 1) * patch.chunk);
  const int phases = phases_of(patch);
  Run run{all.begin, all.begin};
  for (int phase = 0; phase < phases; ++phase) {
    for (int first = all.begin; first < all.end; first += kWarp) {
      const int k = first + lane, column = k < all.end ? walk.column[k] : 0, tap = column % walk.taps;
      const bool mine = k < all.end && (phases == 1 || phase_of(patch, tap) == phase);
      const unsigned votes = __ballot_sync(kAllLanes, mine);
      if (mine) {
        const T value = values[walk.position ? walk.position[k] : k];
        kept[run.end + __popc(votes & ((1u << lane) - 1))] = {{widen(value)}, patch.column_place(column / walk.taps - before, tap)};
      }
      run.end += __popc(votes);
    }
    if (lane == 0) runs[(int64_t{phase} * chunks + chunk) * walk.lines + line] = run;
    run.begin = run.end;
  }
}

// Of a gathered index: the runs, and the columns without their weights.
template <int kRows>
static __global__ void __launch_bounds__(kDecodeThreads)
decode_columns(GatherView view, Patch patch, Kept<kRows>* kept, Run* runs) {
  const int64_t i = int64_t{blockIdx.x} * kDecodeThreads + threadIdx.x, segments = view.phases * view.chunks;
  if (i < view.groups * segments) {
    runs[i % segments * view.groups + i / segments] = {view.ptr[i], view.ptr[i + 1]};
  }
  if (i < view.columns) {
    const int taps = patch.y.kernel * patch.x.kernel, column = view.column[i];
    kept[i] = {{}, patch.column_place(column / taps % patch.chunk, column % taps)};
  }
}

template <class T, int kRows>
static __global__ void __launch_bounds__(kDecodeThreads)
place_weights(const int32_t* place, const T* values, int64_t nnz, Kept<kRows>* kept) {
  const int64_t j = int64_t{blockIdx.x} * kDecodeThreads + threadIdx.x;
  if (j < nnz) kept[place[j] / kRows].weight[place[j] % kRows] = widen(values[j]);
}

inline Grid threads_for(int64_t count) {
  return {{static_cast<unsigned>(std::max<int64_t>(ceil_div(count, kDecodeThreads), 1))}, {kDecodeThreads}};
}

// Decodes the weights of a pass.
template <class T, int kRows>
Lines<kRows> decode(const ConvCall& call, const Patch& patch, const T* values) {
  const bool transposed = patch.y.transposed;
  Lines<kRows> lines{};
  if constexpr (kRows == 1) {
    const MaskWalk walk(call.shape, call.index, transposed);
    lines.count = walk.lines;
    lines.chunks = static_cast<int>(ceil_div(patch.channels, patch.chunk));
    auto* kept = static_cast<Kept<1>*>(call.scratch(static_cast<size_t>(call.shape.nnz) * sizeof(Kept<1>)));
    const int64_t units = int64_t{lines.count} * lines.chunks;
    auto* runs = static_cast<Run*>(call.scratch(static_cast<size_t>(units * phases_of(patch)) * sizeof(Run)));
    launch(call.op, decode_kept<T>, threads_for(units * kWarp), call.stream, walk, patch, lines.chunks, values, kept, runs);
    lines.kept = kept, lines.runs = runs;
  } else {
    const GatherView view = gather_view(call, transposed, 1);
    lines.count = static_cast<int>(view.groups);
    lines.chunks = static_cast<int>(view.chunks);
    lines.order = view.order;
    const int64_t segments = view.groups * view.phases * view.chunks;
    auto* kept = static_cast<Kept<kRows>*>(call.scratch(static_cast<size_t>(view.columns) * sizeof(Kept<kRows>)));
    auto* runs = static_cast<Run*>(call.scratch(static_cast<size_t>(segments) * sizeof(Run)));
    launch(
        call.op, decode_columns<kRows>, threads_for(std::max(segments, view.columns)), call.stream, view, patch, kept, runs);
    launch(
        call.op, place_weights<T, kRows>, threads_for(call.shape.nnz), call.stream, view.place, values, call.shape.nnz, kept);
    lines.kept = kept, lines.runs = runs;
  }
  return lines;
}

}  // namespace tost
