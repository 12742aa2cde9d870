// mask -> packed index. The layout is specified in tost_kernels/packed_index.py, whose compile_reference this equals.
//
// Two passes over the mask, one counting and one writing, for the forward and the transposed view at once: masks have up to
// 1e8 entries, and a sort of the transposed entries would cost far more than walking the mask in row order and appending each
// entry to its transposed row (which leaves the rows sorted by (o, dy, dx), as wanted).

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "gather.h"
#include "packed_view.h"
#include "row_order.h"
#include "tiles.h"
#include "view.h"

namespace py = pybind11;
using tost::ceil_div;

namespace {

constexpr int32_t kVersion = 1;
constexpr int64_t kHeader = 16;

struct Shape {
  int64_t outputs, inputs, kh, kw;
  int64_t taps() const { return kh * kw; }
};

// counts[row * blocks + block + 1] of both views, then their running sums: the two ptr sections.
void count(const bool* mask, Shape s, int64_t block, std::vector<int64_t>& ptr, std::vector<int64_t>& t_ptr) {
  const int64_t blocks = ceil_div(s.inputs, block), t_blocks = ceil_div(s.outputs, block);
  ptr.assign(s.outputs * blocks + 1, 0);
  t_ptr.assign(s.inputs * t_blocks + 1, 0);
  for (int64_t o = 0; o < s.outputs; ++o)
    for (int64_t i = 0; i < s.inputs; ++i) {
      int64_t kept = 0;
      for (int64_t t = 0; t < s.taps(); ++t) kept += *mask++;
      ptr[o * blocks + i / block + 1] += kept;
      t_ptr[i * t_blocks + o / block + 1] += kept;
    }
  for (size_t k = 1; k < ptr.size(); ++k) ptr[k] += ptr[k - 1];
  for (size_t k = 1; k < t_ptr.size(); ++k) t_ptr[k] += t_ptr[k - 1];
}

void fill(const bool* mask, Shape s, int64_t block, const std::vector<int64_t>& t_ptr, int32_t* col, int32_t* t_col,
          int32_t* t_perm) {
  const int64_t t_blocks = ceil_div(s.outputs, block);
  std::vector<int64_t> next(s.inputs);
  for (int64_t i = 0; i < s.inputs; ++i) next[i] = t_ptr[i * t_blocks];
  int64_t k = 0;
  for (int64_t o = 0; o < s.outputs; ++o)
    for (int64_t i = 0; i < s.inputs; ++i)
      for (int64_t t = 0; t < s.taps(); ++t) {
        if (!*mask++) continue;
        col[k] = static_cast<int32_t>(i * s.taps() + t);
        t_col[next[i]] = static_cast<int32_t>(o * s.taps() + t);
        t_perm[next[i]] = static_cast<int32_t>(k);
        ++next[i];
        ++k;
      }
}

py::array_t<int32_t> compile_mask(py::array_t<bool, py::array::c_style> mask, int64_t block) {
  if (mask.ndim() != 4)
    throw std::invalid_argument("mask: expected 4 dimensions (O, I, kh, kw), got " + std::to_string(mask.ndim()));
  if (block < 1) throw std::invalid_argument("block: expected at least 1, got " + std::to_string(block));
  const Shape s{mask.shape(0), mask.shape(1), mask.shape(2), mask.shape(3)};
  // Columns of both views are 32 bits. Every factor is at least 1 or the mask is empty, so the products do not overflow.
  const int64_t columns = std::max(s.outputs, s.inputs) * s.taps();
  if (columns > INT32_MAX)
    throw std::invalid_argument(
        "mask: expected max(O, I) * kh * kw below 2**31, got " + std::to_string(columns) + " for its index's columns");
  const bool* data = mask.data();

  std::vector<int64_t> ptr, t_ptr;
  {
    py::gil_scoped_release release;
    count(data, s, block, ptr, t_ptr);
  }
  const int64_t nnz = ptr.back();
  const int64_t at_ptr = kHeader, at_col = at_ptr + static_cast<int64_t>(ptr.size()), at_t_ptr = at_col + nnz;
  const int64_t at_t_col = at_t_ptr + static_cast<int64_t>(t_ptr.size()), at_t_perm = at_t_col + nnz, length = at_t_perm + nnz;
  if (length > INT32_MAX)
    throw std::length_error("mask: its index would have " + std::to_string(length) + " entries, expected fewer than 2**31");

  py::array_t<int32_t> packed(length);
  int32_t* out = packed.mutable_data();
  {
    py::gil_scoped_release release;
    const int64_t header[kHeader] = {
        kVersion, s.outputs, s.inputs, s.kh,     s.kw,     nnz,       block,  ceil_div(s.inputs, block),
        ceil_div(s.outputs, block),    at_ptr,   at_col,   at_t_ptr,  at_t_col, at_t_perm, length, 0};
    for (int64_t k = 0; k < kHeader; ++k) out[k] = static_cast<int32_t>(header[k]);
    for (size_t k = 0; k < ptr.size(); ++k) out[at_ptr + k] = static_cast<int32_t>(ptr[k]);
    for (size_t k = 0; k < t_ptr.size(); ++k) out[at_t_ptr + k] = static_cast<int32_t>(t_ptr[k]);
    fill(data, s, block, t_ptr, out + at_col, out + at_t_col, out + at_t_perm);
  }
  return packed;
}

std::pair<tost::Ints, tost::Ints> row_orders(const tost::Ints& index, int64_t rows, int64_t groups, int64_t block) {
  if (rows < 1 || block < 1)
    throw std::invalid_argument("rows, block: expected at least 1, got " + std::to_string(rows) + " and " + std::to_string(block));
  const int32_t* data = index.data();
  tost::Order order, t_order;
  {
    py::gil_scoped_release release;
    const tost::View view = tost::forward_view(data, index.size(), groups);
    order = tost::search_order(view, rows, block);
    t_order = tost::search_order(tost::transposed(view), rows, block);
  }
  const auto array = [](const tost::Order& order) { return tost::Ints(static_cast<py::ssize_t>(order.size()), order.data()); };
  return {array(order), array(t_order)};
}

}  // namespace

PYBIND11_MODULE(_pattern, m) {
  m.doc() = "Pattern compiler: a mask becomes the packed index of tost_kernels.packed_index, "
            "that one the tiles of tost_kernels.tiles and the gathered index of tost_kernels.gather.";
  m.def("compile_mask", &compile_mask, py::arg("mask").noconvert(), py::arg("block"),
        "Pack a bool mask (O, I, kh, kw) into its int32 index; the GIL is released.");
  m.def("row_orders", &row_orders, py::arg("index").noconvert(), py::arg("rows"), py::arg("groups"), py::arg("block"),
        "The two orders of the rows of a packed index that let groups of them share columns; the GIL is released.");
  m.def("tile_index", &tost::tile_index, py::arg("index").noconvert(), py::arg("rows"), py::arg("groups"), py::arg("block"),
        py::arg("order") = py::none(), py::arg("t_order") = py::none(),
        "The tiled index of a packed one; rows stay where they are by default. The GIL is released.");
  m.def("gather_index", &tost::gather_index, py::arg("index").noconvert(), py::arg("rows"), py::arg("chunk"), py::arg("depth"),
        py::arg("groups"), py::arg("stride"), py::arg("dilation"), py::arg("order") = py::none(), py::arg("t_order") = py::none(),
        "The gathered index of a packed one; rows stay where they are by default. The GIL is released.");
}
