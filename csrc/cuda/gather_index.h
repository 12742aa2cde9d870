// Where the sections of an index lie (tost_kernels/packed_index.py, gather.py). From sizes alone: the numbers are on the device.
#pragma once

#include "conv_call.h"

namespace tost {

// The gathered index from the side of one view: forward, or transposed.
struct GatherView {
  const int32_t* order;   // groups * rows
  const int32_t* ptr;     // groups * phases * chunks + 1
  const int32_t* column;  // columns
  const int32_t* place;   // nnz
  int64_t groups, phases, chunks;
  int64_t columns;  // K: the packed weight has K * rows numbers
};

constexpr int kDepthTf32 = 8, kDepthBf16 = 16;  // columns of a k-step of the tensor cores, which every segment has a multiple of

// How long the base index of this weight is.
inline int64_t base_index_length(const ConvShape& s) {
  constexpr int64_t kHeader = 16, kBlock = 8;
  const int64_t inputs = s.channels / s.groups;
  return kHeader + s.outputs * ceil_div(inputs, kBlock) + 1 + inputs * ceil_div(s.outputs, kBlock) + 1 + 3 * s.nnz;
}

// The view of call.index, made for call.options' rows and chunk with columns in multiples of `depth`. Throws
// std::runtime_error where its length is none that such an index has.
inline GatherView gather_view(const ConvCall& call, bool transposed, int depth) {
  const ConvShape& s = call.shape;
  const int64_t rows = call.options.rows, chunk = call.options.chunk;
  const int64_t base = base_index_length(s);
  const GatherView forward{nullptr, nullptr, nullptr, nullptr, ceil_div(s.outputs, rows), 1, ceil_div(s.channels, chunk), 0};
  GatherView back{nullptr, nullptr, nullptr, nullptr, ceil_div(s.channels, rows), int64_t{s.stride[0]} * s.stride[1],
                  ceil_div(s.outputs, chunk), 0};
  const auto fixed = [&](const GatherView& v) { return v.groups * rows + v.groups * v.phases * v.chunks + 1 + s.nnz; };
  const int64_t twice = call.index_length - base - fixed(forward) - fixed(back);
  if (twice < 0 || twice % (2 * depth) != 0) {
    throw std::runtime_error(
        std::string(call.op) + ": index: expected one of this weight for rows=" + std::to_string(rows) + " and chunk=" +
        std::to_string(chunk) + ", got " + std::to_string(call.index_length) + " numbers");
  }
  const int64_t columns = twice / 2;
  const auto at = [&](GatherView v, const int32_t* begin) {
    v.order = begin;
    v.ptr = v.order + v.groups * rows;
    v.column = v.ptr + v.groups * v.phases * v.chunks + 1;
    v.place = v.column + columns;
    v.columns = columns;
    return v;
  };
  const GatherView first = at(forward, call.index + base);
  return transposed ? at(back, first.place + s.nnz) : first;
}

}  // namespace tost
