// The kept weights in the order in which the kernels meet them, with offsets into the packed tile.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "../checks.h"
#include "conv_job.h"
#include "lattice.h"
#include "packed_index.h"

namespace tost {

// Sorted by (phase, group, channel block, row, class of the tap), and within such a run as the index is.
struct Stream {
  std::vector<int32_t> offset;    // of each kept weight, in the packed tile
  std::vector<int32_t> position;  // where it is in `values`
  std::vector<int32_t> ptr;       // phases * groups * blocks * rows * classes + 1
  const int32_t* phase_ptr(int64_t phase, int64_t slots_per_phase) const { return ptr.data() + phase * slots_per_phase; }
};

// All that a stream follows from, besides the index.
struct StreamShape {
  int64_t groups;
  int64_t rows, channels;  // a group
  int64_t block, blocks;
  int64_t classes;         // of taps
  bool groups_are_rows;    // forward: a row of the index belongs to one group. Transposed: its channels span all groups.
  int64_t phases;
  // Where a tap lies in a packed channel, the phase it serves, its class; floats of a packed channel of each phase.
  std::vector<int64_t> offset_of_tap, phase_of_tap, class_of_tap, channel_pitch;

  bool operator==(const StreamShape&) const = default;
};

// index_block: the index's own block of channels. Throws if the index has entries that would lead out of bounds.
inline Stream build_stream(
    const char* op, const IndexView& index, int64_t nnz, int64_t index_block, const StreamShape& shape) {
  const auto& offset_of_tap = shape.offset_of_tap;
  const auto& phase_of_tap = shape.phase_of_tap;
  const auto& class_of_tap = shape.class_of_tap;
  const auto& channel_pitch = shape.channel_pitch;
  const int64_t phases = shape.phases;
  Stream stream;
  const int64_t taps = static_cast<int64_t>(offset_of_tap.size());
  const int64_t columns = index.channels * taps;
  const int64_t index_groups = shape.groups_are_rows ? 1 : shape.groups;
  const int64_t runs_per_row = phases * index_groups * shape.blocks * shape.classes;
  // What a column of the index means: the offset in the tile, and which run of its row it belongs to.
  std::vector<int32_t> offset(columns), run(columns);
  for (int64_t channel = 0; channel < index.channels; ++channel) {
    const int64_t group = channel / shape.channels, local = channel % shape.channels;
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t phase = phase_of_tap[tap];
      offset[channel * taps + tap] =
          static_cast<int32_t>((local % shape.block) * channel_pitch[phase] + offset_of_tap[tap]);
      run[channel * taps + tap] =
          static_cast<int32_t>(((phase * index_groups + group) * shape.blocks + local / shape.block) * shape.classes +
                               class_of_tap[tap]);
    }
  }

  // Where the run `r` of index row `row` lies among all runs.
  const auto slot = [&](int64_t row, int64_t r) {
    const int64_t of_class = r % shape.classes, rest = r / shape.classes;
    if (!shape.groups_are_rows) return (rest * shape.rows + row) * shape.classes + of_class;
    const int64_t phase = rest / shape.blocks, block = rest % shape.blocks;
    const int64_t before = (phase * shape.groups + row / shape.rows) * shape.blocks + block;
    return (before * shape.rows + row % shape.rows) * shape.classes + of_class;
  };

  // Runs that the index has already: its blocks are parts of ours, and nothing else cuts a row.
  const bool runs_known = phases * index_groups * shape.classes == 1 && (shape.blocks == 1 || shape.block % index_block == 0);
  const int64_t index_blocks_a_run = shape.blocks == 1 ? index.blocks : shape.block / index_block;
  const auto run_begin = [&](int64_t row, int64_t r) {
    return static_cast<int64_t>(index.ptr[row * index.blocks + std::min(r * index_blocks_a_run, index.blocks)]);
  };

  stream.offset.resize(nnz);
  stream.position.resize(nnz);
  stream.ptr.assign(phases * shape.groups * shape.blocks * shape.rows * shape.classes + 1, 0);
  int32_t* counts = stream.ptr.data() + 1;
  std::atomic<bool> damaged{false};
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, nnz / index.rows + 1));

  torch::stable::parallel_for(0, index.rows, grain, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> count(runs_per_row);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t first = index.ptr[row * index.blocks], last = index.ptr[(row + 1) * index.blocks];
      if (first < 0 || first > last || last > nnz || (row == 0 && first != 0) || (row + 1 == index.rows && last != nnz)) {
        damaged = true;
        return;
      }
      uint32_t largest = 0;
      for (int64_t k = first; k < last; ++k) largest = std::max(largest, static_cast<uint32_t>(index.col[k]));
      if (index.position != nullptr) {
        uint32_t furthest = 0;
        for (int64_t k = first; k < last; ++k) furthest = std::max(furthest, static_cast<uint32_t>(index.position[k]));
        if (last > first && furthest >= static_cast<uint64_t>(nnz)) damaged = true;
      }
      if (last > first && largest >= static_cast<uint64_t>(columns)) damaged = true;
      if (damaged) return;
      if (runs_known) {
        for (int64_t r = 0; r < runs_per_row; ++r) {
          const int64_t length = run_begin(row, r + 1) - run_begin(row, r);
          if (length < 0 || run_begin(row, r) < first) damaged = true;
          count[r] = static_cast<int32_t>(length);
        }
        if (damaged) return;
      } else {
        std::fill(count.begin(), count.end(), 0);
        for (int64_t k = first; k < last; ++k) ++count[run[index.col[k]]];
      }
      for (int64_t r = 0; r < runs_per_row; ++r) counts[slot(row, r)] = count[r];
    }
  });
  TOST_CHECK(!damaged, op, "index: damaged: a row or a column is out of range (nnz ", nnz, ")");
  for (size_t k = 1; k < stream.ptr.size(); ++k) stream.ptr[k] += stream.ptr[k - 1];

  const auto put = [&](int64_t to, int64_t k) {
    stream.offset[to] = offset[index.col[k]];
    stream.position[to] = index.position == nullptr ? static_cast<int32_t>(k) : index.position[k];
  };
  torch::stable::parallel_for(0, index.rows, grain, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> next(runs_per_row);
    for (int64_t row = begin; row < end; ++row) {
      if (runs_known) {
        for (int64_t r = 0; r < runs_per_row; ++r) {
          const int64_t first = run_begin(row, r), to = stream.ptr[slot(row, r)], length = run_begin(row, r + 1) - first;
          for (int64_t k = 0; k < length; ++k) put(to + k, first + k);
        }
        continue;
      }
      for (int64_t r = 0; r < runs_per_row; ++r) next[r] = stream.ptr[slot(row, r)];
      const int64_t last = index.ptr[(row + 1) * index.blocks];
      for (int64_t k = index.ptr[row * index.blocks]; k < last; ++k) {
        put(next[run[index.col[k]]]++, k);
      }
    }
  });
  return stream;
}

// The stream with its weights, for the kernels.
template <class T>
void with_weights(const Stream& stream, const T* values, int64_t stride, std::vector<Nonzero>& nonzeros) {
  const int64_t nnz = static_cast<int64_t>(stream.offset.size());
  nonzeros.resize(nnz);
  torch::stable::parallel_for(0, nnz, 16384, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      nonzeros[k] = {stream.offset[k], to_float(values[stream.position[k] * stride])};
    }
  });
}

}  // namespace tost
