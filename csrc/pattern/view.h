// One view of a weight's kept positions, by rows: output channels in the forward view, input channels in the transposed one.
#pragma once

#include <cstdint>
#include <vector>

namespace tost {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct View {
  int64_t rows, channels, taps;
  std::vector<int64_t> start;  // the kept weights of row r are the entries start[r] .. start[r + 1]
  struct Entry {
    int32_t tap, channel, value;
  };
  std::vector<Entry> entries;
};

// A row in each slot of each group of rows, -1 for the empty slots at the end.
using Order = std::vector<int32_t>;

constexpr int64_t kSegment = 16;  // columns of a group at a tap are padded to a multiple of this

}  // namespace tost
