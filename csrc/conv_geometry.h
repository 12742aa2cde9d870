// The geometry of a convolution as the ops get it, checked; and the shape of its output.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <vector>

#include "checks.h"

namespace tost {

// Order: height, width.
struct ConvGeometry {
  std::array<int64_t, 2> stride{1, 1};
  std::array<int64_t, 2> padding{0, 0};
  std::array<int64_t, 2> dilation{1, 1};
  int64_t groups = 1;
};

inline ConvGeometry read_geometry(
    const char* op, int64_t outputs, const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
    const std::vector<int64_t>& dilation, int64_t groups) {
  const auto pair = [op](const char* name, const std::vector<int64_t>& numbers, int64_t least) {
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();  // sums and products of these stay in 64 bits
    TOST_CHECK(
        numbers.size() == 2 && std::min(numbers[0], numbers[1]) >= least && std::max(numbers[0], numbers[1]) <= kMost,
        op, name, ": expected two numbers, each at least ", least, " and below 2^31, got ", shape_string(numbers));
    return std::array<int64_t, 2>{numbers[0], numbers[1]};
  };
  ConvGeometry geometry{pair("stride", stride, 1), pair("padding", padding, 0), pair("dilation", dilation, 1), groups};
  TOST_CHECK(
      groups >= 1 && outputs % groups == 0,
      op, "groups: expected a divisor of the ", outputs, " output channels, got ", groups);
  return geometry;
}

// (N, O, H_out, W_out) of an input (N, C, H, W) and a weight of `outputs` and, in each group, `inputs` channels.
inline std::vector<int64_t> conv_output_shape(
    const char* op, const std::vector<int64_t>& input, int64_t outputs, int64_t inputs, int64_t kh, int64_t kw,
    const ConvGeometry& geometry) {
  TOST_CHECK(
      input[1] == inputs * geometry.groups,
      op, "input: expected ", inputs * geometry.groups, " channels (", inputs, " a group, groups ", geometry.groups,
      "), got shape ", shape_string(input));
  std::vector<int64_t> shape{input[0], outputs};
  const int64_t kernel[2] = {kh, kw};
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t room = input[2 + axis] + 2 * geometry.padding[axis] - geometry.dilation[axis] * (kernel[axis] - 1) - 1;
    const int64_t size = room < 0 ? 0 : room / geometry.stride[axis] + 1;
    TOST_CHECK(
        size > 0, op, "input: expected it to be large enough for a ", kh, "x", kw, " kernel with padding ",
        shape_string(geometry.padding), " and dilation ", shape_string(geometry.dilation), ", got shape ",
        shape_string(input));
    shape.push_back(size);
  }
  return shape;
}

inline void check_input_shape(const char* op, const std::vector<int64_t>& input_shape) {
  TOST_CHECK(
      input_shape.size() == 4 && *std::min_element(input_shape.begin(), input_shape.end()) >= 0,
      op, "input_shape: expected four sizes, got ", shape_string(input_shape));
}

}  // namespace tost
