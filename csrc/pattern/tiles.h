#pragma once

#include <cstdint>

#include <pybind11/numpy.h>

namespace tost {

// The tiled index of a packed one, as specified in tost_kernels/tiles.py, whose tile_reference this equals but for the order
// of the rows, which is searched for. Throws std::invalid_argument on an index or arguments that cannot be.
pybind11::array_t<int32_t> tile_index(
    pybind11::array_t<int32_t, pybind11::array::c_style> index, int64_t rows, int64_t groups, int64_t block);

}  // namespace tost
