#include "packed_view.h"

#include <stdexcept>
#include <string>

namespace tost {

namespace {

constexpr int64_t kHeader = 16;

struct Packed {
  const int32_t* data;
  int64_t outputs, inputs, kh, kw, nnz, blocks, at_ptr, at_col;
};

Packed parse(const int32_t* data, int64_t length) {
  const auto require = [](bool good) {
    if (!good) throw std::invalid_argument("index: expected the packed index of a pattern");
  };
  require(length >= kHeader && data[14] == length);
  const auto at = [&](int64_t k) { return static_cast<int64_t>(data[k]); };
  require(at(1) > 0 && at(2) > 0 && at(3) > 0 && at(4) > 0 && at(5) >= 0 && at(7) > 0);
  const Packed p{data, at(1), at(2), at(3), at(4), at(5), at(7), at(9), at(10)};
  const int64_t taps = p.kh * p.kw;
  require(p.at_ptr == kHeader && p.at_col == p.at_ptr + p.outputs * p.blocks + 1 && p.at_col + p.nnz <= length);
  require(p.inputs <= INT32_MAX / taps);
  for (int64_t o = 0; o <= p.outputs; ++o) {
    const int64_t k = data[p.at_ptr + o * p.blocks];
    require(o == 0 ? k == 0 : k >= data[p.at_ptr + (o - 1) * p.blocks] && k <= p.nnz);
  }
  require(data[p.at_col - 1] == p.nnz);
  for (int64_t k = 0; k < p.nnz; ++k) require(data[p.at_col + k] >= 0 && data[p.at_col + k] < p.inputs * taps);
  return p;
}

}  // namespace

View forward_view(const int32_t* index, int64_t length, int64_t groups) {
  const Packed p = parse(index, length);
  const int64_t taps = p.kh * p.kw;
  if (groups < 1 || p.outputs % groups != 0)
    throw std::invalid_argument("groups: expected a divisor of the " + std::to_string(p.outputs) + " output channels, got " +
                                std::to_string(groups));
  if (p.inputs * taps > INT32_MAX / groups)
    throw std::invalid_argument("pattern: expected input channels * kh * kw below 2**31, got " +
                                std::to_string(p.inputs * taps * groups));
  View view{p.outputs, p.inputs * groups, p.kh, p.kw, std::vector<int64_t>(p.outputs + 1), {}};
  view.entries.reserve(p.nnz);
  for (int64_t o = 0; o < p.outputs; ++o) {
    const int64_t first = o / (p.outputs / groups) * p.inputs, end = p.data[p.at_ptr + (o + 1) * p.blocks];
    for (int64_t k = view.start[o]; k < end; ++k) {
      const int64_t col = p.data[p.at_col + k];
      view.entries.push_back(
          {static_cast<int32_t>(col % taps), static_cast<int32_t>(first + col / taps), static_cast<int32_t>(k)});
    }
    view.start[o + 1] = end;
  }
  return view;
}

View transposed(const View& view) {
  View other{view.channels, view.rows, view.kh, view.kw, std::vector<int64_t>(view.channels + 1),
             std::vector<View::Entry>(view.entries.size())};
  for (const View::Entry& e : view.entries) ++other.start[e.channel + 1];
  for (int64_t i = 0; i < other.rows; ++i) other.start[i + 1] += other.start[i];
  std::vector<int64_t> next(other.start.begin(), other.start.end() - 1);
  for (int64_t o = 0; o < view.rows; ++o)
    for (int64_t k = view.start[o]; k < view.start[o + 1]; ++k) {
      const View::Entry& e = view.entries[k];
      other.entries[next[e.channel]++] = {e.tap, static_cast<int32_t>(o), e.value};
    }
  return other;
}

}  // namespace tost
