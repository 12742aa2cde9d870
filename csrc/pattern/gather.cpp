// packed index -> gathered index. The layout is specified in tost_kernels/gather.py.

#include "gather.h"

#include <algorithm>
#include <numeric>
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

// `read_order` of tost_kernels/gather.py: appends the columns of a segment, which are sorted, to `out`.
class ReadOrder {
 public:
  ReadOrder(int64_t banks, int64_t taps) : taps_(taps), left_(banks), taken_(banks), by_size_(banks) {}

  void append(const std::vector<int32_t>& columns, std::vector<int32_t>& out) {
    const auto banks = static_cast<int64_t>(left_.size());
    for (Queue& queue : left_) queue.columns.clear(), queue.begin = 0;
    for (const int32_t column : columns) left_[column / taps_ % banks].columns.push_back(column);
    for (auto rest = static_cast<int64_t>(columns.size()); rest > 0;) {
      int64_t room = std::min(banks, rest);
      const int64_t most = most_of_a_bank(room);
      rest -= room;
      std::iota(by_size_.begin(), by_size_.end(), 0);
      std::stable_sort(by_size_.begin(), by_size_.end(), [&](int a, int b) { return left_[a].size() > left_[b].size(); });
      for (const int bank : by_size_) room -= taken_[bank] = std::min({most, left_[bank].size(), room});
      for (int64_t bank = 0; bank < banks; ++bank)
        for (; taken_[bank] > 0; --taken_[bank]) out.push_back(left_[bank].columns[left_[bank].begin++]);
    }
  }

 private:
  struct Queue {
    std::vector<int32_t> columns;
    int64_t begin = 0;
    int64_t size() const { return static_cast<int64_t>(columns.size()) - begin; }
  };

  // The fewest columns of one bank that a read of `room` columns must have.
  int64_t most_of_a_bank(int64_t room) const {
    for (int64_t most = 1;; ++most) {
      int64_t found = 0;
      for (const Queue& queue : left_) found += std::min(queue.size(), most);
      if (found >= room) return most;
    }
  }

  int64_t taps_;
  std::vector<Queue> left_;     // of each bank
  std::vector<int64_t> taken_;  // by the read
  std::vector<int> by_size_;
};

// Which columns a segment has: those of a phase and of `chunk` channels. Its number counts within a group.
struct Cut {
  int64_t chunk, chunks, phases;
  std::vector<int32_t> phase_of_tap;

  int64_t segments() const { return phases * chunks; }
  int64_t segment(int64_t channel, int64_t tap) const { return phase_of_tap[tap] * chunks + channel / chunk; }
};

Cut cut(const View& view, int64_t rows, int64_t chunk, const Pair& stride, const Pair& dilation) {
  Cut cut{chunk, ceil_div(view.channels, chunk), stride[0] * stride[1], {}};
  const int64_t groups = ceil_div(view.rows, rows);
  if (cut.phases > INT32_MAX || groups * cut.chunks > INT32_MAX / cut.phases)
    throw std::invalid_argument(
        "pattern: expected fewer than 2**31 segments in its gathered index, got " + std::to_string(groups) + " row groups x " +
        std::to_string(cut.phases) + " phases x " + std::to_string(cut.chunks) + " chunks");
  for (int64_t dy = 0; dy < view.kh; ++dy)
    for (int64_t dx = 0; dx < view.kw; ++dx)
      cut.phase_of_tap.push_back(
          static_cast<int32_t>(dy * dilation[0] % stride[0] * stride[1] + dx * dilation[1] % stride[1]));
  return cut;
}

// One view's sections. Positions are cut to 32 bits; `check_lengths` throws where that changed one.
struct Sections {
  Order order;
  std::vector<int32_t> ptr, column, place;
};

Sections gather(const View& view, Order order, const Cut& cut, int64_t rows, int64_t depth) {
  Sections out{std::move(order), {0}, {}, std::vector<int32_t>(view.entries.size())};
  const int64_t taps = view.taps();
  const auto column_of = [&](const View::Entry& e) { return e.channel * taps + e.tap; };
  std::vector<int64_t> position(view.channels * taps, -1);  // of each column the group keeps
  std::vector<std::vector<int32_t>> kept(cut.segments());   // of each segment of the group, its columns
  ReadOrder read_order(std::max<int64_t>(1, depth / 2), taps);
  for (int64_t g = 0; g < static_cast<int64_t>(out.order.size()) / rows; ++g) {
    visit_group(view, out.order, rows, g, [&](int64_t, const View::Entry& e) {
      const int64_t column = column_of(e);
      if (position[column] >= 0) return;
      position[column] = 0;
      kept[cut.segment(e.channel, e.tap)].push_back(static_cast<int32_t>(column));
    });
    for (std::vector<int32_t>& columns : kept) {
      std::sort(columns.begin(), columns.end());
      const size_t begin = out.column.size();
      read_order.append(columns, out.column);
      for (size_t k = begin; k < out.column.size(); ++k) position[out.column[k]] = static_cast<int64_t>(k);
      while (out.column.size() % static_cast<size_t>(depth) != 0) out.column.push_back(out.column.back());
      out.ptr.push_back(static_cast<int32_t>(out.column.size()));
      columns.clear();
    }
    visit_group(view, out.order, rows, g, [&](int64_t slot, const View::Entry& e) {
      out.place[e.value] = static_cast<int32_t>(position[column_of(e)] * rows + slot);
    });
    visit_group(view, out.order, rows, g, [&](int64_t, const View::Entry& e) { position[column_of(e)] = -1; });
  }
  return out;
}

}  // namespace

Ints gather_index(
    const Ints& index, int64_t rows, int64_t chunk, int64_t depth, int64_t groups, const Pair& stride, const Pair& dilation,
    const MaybeInts& order, const MaybeInts& t_order) {
  for (const auto& [name, value] : {std::pair{"rows", rows}, {"chunk", chunk}, {"depth", depth}, {"stride", stride[0]},
                                    {"stride", stride[1]}, {"dilation", dilation[0]}, {"dilation", dilation[1]}})
    if (value < 1 || value > INT32_MAX)
      throw std::invalid_argument(std::string(name) + ": expected 1 to 2**31 - 1, got " + std::to_string(value));
  const int32_t* data = index.data();
  const int64_t packed_length = index.size();
  std::optional<Order> asked = to_order(order), t_asked = to_order(t_order);
  Sections there, back;
  int64_t room = 0, length = 0;
  {
    py::gil_scoped_release release;
    const View forward = forward_view(data, packed_length, groups);
    const View backward = transposed(forward);
    const Cut forward_cut = cut(forward, rows, chunk, {1, 1}, dilation), backward_cut = cut(backward, rows, chunk, stride, dilation);
    there = gather(forward, checked_order(std::move(asked), forward.rows, rows), forward_cut, rows, depth);
    back = gather(backward, checked_order(std::move(t_asked), backward.rows, rows), backward_cut, rows, depth);
    room = static_cast<int64_t>(std::max(there.column.size(), back.column.size()));
    length = packed_length + 2 * room;
    for (const Sections* s : {&there, &back}) length += static_cast<int64_t>(s->order.size() + s->ptr.size() + s->place.size());
    check_lengths("gathered", length, room, rows);
  }
  Ints gathered(length);
  int32_t* out = gathered.mutable_data();
  {
    py::gil_scoped_release release;
    out = std::copy(data, data + packed_length, out);
    for (Sections* s : {&there, &back}) {
      s->column.resize(room, 0);
      for (const std::vector<int32_t>* section : {&s->order, &s->ptr, &s->column, &s->place})
        out = std::copy(section->begin(), section->end(), out);
    }
  }
  return gathered;
}

}  // namespace tost
