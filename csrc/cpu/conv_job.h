// What the convolution kernels get: plain numbers and raw pointers, the same for every instruction set.
#pragma once

#include <cstdint>

#include "tensor.h"

namespace tost {

// A kept weight inside a packed tile: where its first source vector lies (in packed numbers), and its value.
struct Nonzero {
  int32_t offset;
  float weight;
};

// Result pixels (rows x columns) and batch vectors of one task. rows * columns * batches accumulators stay in registers.
struct Tile {
  int64_t rows, columns, batches;
};

// An Axis of lattice.h without its vectors.
struct AxisView {
  int64_t out_step, out_phase, count, src_step, src_size, tiles, planes, extent;
  const int64_t* start;
};

// One phase of the result (the forward convolution has one, an input gradient stride * stride).
struct Phase {
  AxisView y, x;
  int64_t row_pitch;      // packed numbers from one row of a packed plane to the next
  int64_t channel_pitch;  // packed numbers of one channel
  const int32_t* ptr;     // (groups, blocks, rows, classes) + 1: runs of `nonzeros` that one row takes from one channel block
};

// Tasks are numbered tile row, tile column, batch block, phase, row chunk, from the slowest to the fastest: the phases of one
// place read the same source and write between each other's pixels. Tiles are counted for the largest phase; a task whose
// tile another phase does not have is empty.
struct ConvJob {
  const Phase* phases;
  int64_t phase_count;
  int64_t tasks;
  int64_t x_tiles;
  Tile tile;
  int64_t batch_blocks;   // ceil(N / (tile.batches * lanes))
  int64_t row_chunks;     // of groups * rows
  int64_t groups, rows;   // rows a group: channels of the result
  int64_t channels;       // source channels a group
  int64_t block, blocks;  // channels packed at a time, and how often
  int64_t tile_numbers;   // scratch for one packed block
  int64_t y_classes, x_classes;  // of taps, see lattice.h; classes = their product
  const Nonzero* nonzeros;  // with their weights; a values gradient has none
  const int32_t* offsets;   // theirs alone
};

template <class T>
struct GatherJob {
  ConvJob conv;
  View<const T> source;
  View<T> result;
  const T* bias;  // one a result channel, or null
  int64_t bias_stride;
  bool streaming;  // the result may be written past the caches
};

// Chunks of tasks, each with partial sums of its own, so that the bits do not depend on the number of threads.
template <class T>
struct ValuesGradJob {
  ConvJob conv;  // row_chunks is 1: work item = chunk * row_segments + segment
  View<const T> source;
  View<const T> grad;
  int64_t chunks, row_segments, nnz;
  float* partial;  // (chunks, nnz), in the order of `nonzeros`
};

}  // namespace tost
