// The two views of a packed index (tost_kernels/packed_index.py) that is checked: it may come from anywhere.
#pragma once

#include <cstdint>

#include "view.h"

namespace tost {

// Rows are output channels; channels are absolute. Throws std::invalid_argument on what is no packed index, or no divisor of its
// output channels, or where columns need more than 32 bits.
View forward_view(const int32_t* index, int64_t length, int64_t groups);

// Rows are absolute input channels.
View transposed(const View& view);

}  // namespace tost
