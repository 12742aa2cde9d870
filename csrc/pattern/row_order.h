#pragma once

#include "view.h"

namespace tost {

// The permutation of the view's rows into groups of `size`, found by search: never more columns than in the natural order.
// A column is a tap and a block of `block` channels. The same arguments give the same order on every machine.
Order search_order(const View& view, int64_t size, int64_t block);

}  // namespace tost
