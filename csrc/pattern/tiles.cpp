// packed index -> tiled index. The layout is specified in tost_kernels/tiles.py.

#include "tiles.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "packed_view.h"
#include "row_order.h"
#include "view.h"

namespace py = pybind11;

namespace tost {

namespace {

// The columns of one group after the other.
class Columns {
 public:
  Columns(const View& view, const Order& order, int64_t rows, int64_t block)
      : view_(view), order_(order), rows_(rows), block_(block), units_(ceil_div(view.channels, block)),
        column_of_(view.taps() * units_, kNone) {}

  int64_t groups() const { return static_cast<int64_t>(order_.size()) / rows_; }

  // Columns of group g at each tap, padded.
  std::vector<int64_t> widths(int64_t g) {
    std::vector<int64_t> kept(view_.taps(), 0);
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
    const int64_t begin = ptr[0], width = ptr[view_.taps()] - begin;
    for (int64_t t = 0; t < view_.taps(); ++t) {
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
    visit_group(view_, order_, rows_, g, action);
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

Sections lay_out(const View& view, Order order, int64_t rows, int64_t block) {
  Sections sections{std::move(order), {0}};
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
  for (int64_t g = 0; g < columns.groups(); ++g) columns.write(g, ptr + g * view.taps(), out, place);
  return place + view.entries.size();
}

}  // namespace

Ints tile_index(const Ints& index, int64_t rows, int64_t groups, int64_t block, const MaybeInts& order, const MaybeInts& t_order) {
  if (rows < 1 || block < 1 || rows > INT32_MAX || block > INT32_MAX)
    throw std::invalid_argument("rows, block: expected at least 1, got " + std::to_string(rows) + " and " + std::to_string(block));
  const int32_t* data = index.data();
  const int64_t packed_length = index.size();
  std::optional<Order> asked = to_order(order), t_asked = to_order(t_order);
  View forward, backward;
  Sections there, back;
  int64_t room = 0, length = 0;
  {
    py::gil_scoped_release release;
    forward = forward_view(data, packed_length, groups);
    backward = transposed(forward);
    there = lay_out(forward, checked_order(std::move(asked), forward.rows, rows), rows, block);
    back = lay_out(backward, checked_order(std::move(t_asked), backward.rows, rows), rows, block);
    room = std::max(there.ptr.back(), back.ptr.back());
    length = packed_length + 2 * (room + static_cast<int64_t>(forward.entries.size()));
    for (const Sections* s : {&there, &back}) length += static_cast<int64_t>(s->order.size() + s->ptr.size());
    check_lengths("tiled", length, room, rows);
  }
  Ints tiled(length);
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
