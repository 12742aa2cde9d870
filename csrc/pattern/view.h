// One view of a weight's kept positions, by rows: output channels in the forward view, input channels in the transposed one.
#pragma once

#include <cstdint>
#include <vector>

namespace tost {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct View {
  int64_t rows, channels, kh, kw;
  std::vector<int64_t> start;  // the kept weights of row r are the entries start[r] .. start[r + 1]
  struct Entry {
    int32_t tap, channel, value;
  };
  std::vector<Entry> entries;

  int64_t taps() const { return kh * kw; }
};

// A row in each slot of each group of rows, -1 for the empty slots at the end.
using Order = std::vector<int32_t>;

// action(slot, entry) for the kept weights of group g, of `size` rows.
template <class Action>
void visit_group(const View& view, const Order& order, int64_t size, int64_t g, const Action& action) {
  for (int64_t slot = 0; slot < size; ++slot) {
    const int64_t r = order[g * size + slot];
    if (r < 0) continue;
    for (int64_t k = view.start[r]; k < view.start[r + 1]; ++k) action(slot, view.entries[k]);
  }
}

constexpr int64_t kSegment = 16;  // columns of a group at a tap are padded to a multiple of this

}  // namespace tost
