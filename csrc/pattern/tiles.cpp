// packed index -> tiled index. The layout is specified in tost_kernels/tiles.py.

#include "tiles.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "row_order.h"
#include "view.h"

namespace py = pybind11;

namespace tost {

namespace {

constexpr int64_t kHeader = 16;

struct Packed {
  const int32_t* data;
  int64_t length, outputs, inputs, taps, nnz, blocks, at_ptr, at_col;
};

Packed parse(const int32_t* data, int64_t length) {
  const auto require = [](bool good) {
    if (!good) throw std::invalid_argument("index: expected the packed index of a pattern");
  };
  require(length >= kHeader && data[14] == length);
  const auto at = [&](int64_t k) { return static_cast<int64_t>(data[k]); };
  require(at(1) > 0 && at(2) > 0 && at(3) > 0 && at(4) > 0 && at(5) >= 0 && at(7) > 0);
  const Packed p{data, length, at(1), at(2), at(3) * at(4), at(5), at(7), at(9), at(10)};
  require(p.at_ptr == kHeader && p.at_col == p.at_ptr + p.outputs * p.blocks + 1 && p.at_col + p.nnz <= length);
  require(p.inputs <= INT32_MAX / p.taps);
  for (int64_t o = 0; o <= p.outputs; ++o) {
    const int64_t k = data[p.at_ptr + o * p.blocks];
    require(o == 0 ? k == 0 : k >= data[p.at_ptr + (o - 1) * p.blocks] && k <= p.nnz);
  }
  require(data[p.at_col - 1] == p.nnz);
  for (int64_t k = 0; k < p.nnz; ++k) require(data[p.at_col + k] >= 0 && data[p.at_col + k] < p.inputs * p.taps);
  return p;
}

View forward_view(const Packed& p, int64_t groups) {
  View view{p.outputs, p.inputs * groups, p.taps, std::vector<int64_t>(p.outputs + 1), {}};
  view.entries.reserve(p.nnz);
  for (int64_t o = 0; o < p.outputs; ++o) {
    const int64_t first = o / (p.outputs / groups) * p.inputs, end = p.data[p.at_ptr + (o + 1) * p.blocks];
    for (int64_t k = view.start[o]; k < end; ++k) {
      const int64_t col = p.data[p.at_col + k];
      view.entries.push_back(
          {static_cast<int32_t>(col % p.taps), static_cast<int32_t>(first + col / p.taps), static_cast<int32_t>(k)});
    }
    view.start[o + 1] = end;
  }
  return view;
}

View transposed(const View& view) {
  View other{view.channels, view.rows, view.taps, std::vector<int64_t>(view.channels + 1),
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

// The columns of one group after the other.
class Columns {
 public:
  Columns(const View& view, const Order& order, int64_t rows, int64_t block)
      : view_(view), order_(order), rows_(rows), block_(block), units_(ceil_div(view.channels, block)),
        column_of_(view.taps * units_, kNone) {}

  int64_t groups() const { return static_cast<int64_t>(order_.size()) / rows_; }

  // Columns of group g at each tap, padded.
  std::vector<int64_t> widths(int64_t g) {
    std::vector<int64_t> kept(view_.taps, 0);
    visit(g, [&](int64_t, const View::Entry& e) {
      int32_t& column = column_of_[e.tap * units_ + e.channel / block_];
      if (column == kNone) column = 0, ++kept[e.tap];
    });
    for (int64_t& width : kept) width = ceil_div(width * block_, kSegment) * kSegment;
    visit(g, [&](int64_t, const View::Entry& e) { column_of_[e.tap * units_ + e.channel / block_] = kNone; });
    return kept;
  }

  // ptr: of this group's taps and of the next group's first. Writes the group's part of `channel`, and `place` of its values.
  void write(int64_t g, const int32_t* ptr, int32_t* channel, int32_t* place) {
    visit(g, [&](int64_t, const View::Entry& e) { column_of_[e.tap * units_ + e.channel / block_] = 0; });
    const int64_t begin = ptr[0], width = ptr[view_.taps] - begin;
    for (int64_t t = 0; t < view_.taps; ++t) {
      int64_t column = ptr[t];
      if (column == ptr[t + 1]) continue;
      for (int64_t u = 0; u < units_; ++u) {
        if (column_of_[t * units_ + u] == kNone) continue;
        column_of_[t * units_ + u] = static_cast<int32_t>(column);
        for (int64_t k = 0; k < block_; ++k) channel[column++] = static_cast<int32_t>(u * block_ + k);
      }
      for (; column < ptr[t + 1]; ++column) channel[column] = channel[column - 1];
    }
    visit(g, [&](int64_t slot, const View::Entry& e) {
      const int64_t column = column_of_[e.tap * units_ + e.channel / block_] + e.channel % block_;
      place[e.value] = static_cast<int32_t>(rows_ * begin + slot * width + column - begin);
    });
    visit(g, [&](int64_t, const View::Entry& e) { column_of_[e.tap * units_ + e.channel / block_] = kNone; });
  }

 private:
  static constexpr int32_t kNone = -1;

  template <class Action>
  void visit(int64_t g, const Action& action) const {
    for (int64_t slot = 0; slot < rows_; ++slot) {
      const int64_t r = order_[g * rows_ + slot];
      if (r < 0) continue;
      for (int64_t k = view_.start[r]; k < view_.start[r + 1]; ++k) action(slot, view_.entries[k]);
    }
  }

  const View& view_;
  const Order& order_;
  int64_t rows_, block_, units_;
  std::vector<int32_t> column_of_;  // (tap, block of channels) -> the group's column, or kNone
};

struct Sections {
  Order order;
  std::vector<int64_t> ptr;
};

Sections search(const View& view, int64_t rows, int64_t block) {
  Sections sections{search_order(view, rows, block), {0}};
  Columns columns(view, sections.order, rows, block);
  for (int64_t g = 0; g < columns.groups(); ++g)
    for (const int64_t width : columns.widths(g)) sections.ptr.push_back(sections.ptr.back() + width);
  return sections;
}

// Returns where it stopped.
int32_t* write(const View& view, const Sections& sections, int64_t rows, int64_t block, int64_t room, int32_t* out) {
  out = std::copy(sections.order.begin(), sections.order.end(), out);
  const int32_t* ptr = out;
  for (const int64_t p : sections.ptr) *out++ = static_cast<int32_t>(p);
  int32_t* place = out + room;
  std::fill(out + sections.ptr.back(), place, 0);
  Columns columns(view, sections.order, rows, block);
  for (int64_t g = 0; g < columns.groups(); ++g) columns.write(g, ptr + g * view.taps, out, place);
  return place + view.entries.size();
}

}  // namespace

py::array_t<int32_t> tile_index(py::array_t<int32_t, py::array::c_style> index, int64_t rows, int64_t groups, int64_t block) {
  if (rows < 1 || block < 1 || groups < 1 || rows > INT32_MAX || block > INT32_MAX)
    throw std::invalid_argument("rows, groups, block: expected at least 1");
  const int32_t* data = index.data();
  const int64_t packed_length = index.size();
  View forward, backward;
  Sections there, back;
  int64_t room = 0, length = 0;
  {
    py::gil_scoped_release release;
    const Packed packed = parse(data, packed_length);
    if (packed.outputs % groups != 0)
      throw std::invalid_argument("groups: expected a divisor of the " + std::to_string(packed.outputs) + " output channels");
    if (packed.inputs * packed.taps > INT32_MAX / groups)
      throw std::invalid_argument("pattern: expected input channels * kh * kw below 2**31");
    forward = forward_view(packed, groups);
    backward = transposed(forward);
    there = search(forward, rows, block);
    back = search(backward, rows, block);
    room = std::max(there.ptr.back(), back.ptr.back());
    length = packed_length + 2 * (room + packed.nnz);
    for (const Sections* s : {&there, &back}) length += static_cast<int64_t>(s->order.size() + s->ptr.size());
    if (length > INT32_MAX || room > INT32_MAX / rows)
      throw std::invalid_argument(
          "pattern: expected its tiled index and its packed weight below 2**31 numbers, got " + std::to_string(length) + " and " +
          std::to_string(room * rows));
  }
  py::array_t<int32_t> tiled(length);
  int32_t* out = tiled.mutable_data();
  {
    py::gil_scoped_release release;
    out = std::copy(data, data + packed_length, out);
    out = write(forward, there, rows, block, room, out);
    write(backward, back, rows, block, room, out);
  }
  return tiled;
}

}  // namespace tost
