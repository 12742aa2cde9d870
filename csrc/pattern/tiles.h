#pragma once

#include <cstdint>

#include "grouped.h"

namespace tost {

// The tiled index of a packed one: tile_reference of tost_kernels/tiles.py, which it equals. Throws std::invalid_argument on an
// index or arguments that cannot be.
Ints tile_index(
    const Ints& index, int64_t rows, int64_t groups, int64_t block, const MaybeInts& order, const MaybeInts& t_order);

}  // namespace tost
