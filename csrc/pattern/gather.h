#pragma once

#include <array>
#include <cstdint>

#include "grouped.h"

namespace tost {

using Pair = std::array<int64_t, 2>;  // along y, along x

// The gathered index of a packed one: gather_reference of tost_kernels/gather.py, which it equals. Throws std::invalid_argument
// on an index or arguments that cannot be.
Ints gather_index(
    const Ints& index, int64_t rows, int64_t chunk, int64_t depth, int64_t groups, const Pair& stride, const Pair& dilation,
    const MaybeInts& order, const MaybeInts& t_order);

}  // namespace tost
