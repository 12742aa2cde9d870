#pragma once

#include "view.h"

namespace tost {

// The permutation of the view's rows into groups of `size`, found by search: never more columns than in the natural order.
// A column is a tap and a block of `block` channels. The same arguments give the same order on every machine.
Order search_order(const View& view, int64_t size, int64_t block);

// Rows where they are, in groups of `size`.
Order natural_order(int64_t rows, int64_t size);

// Throws std::invalid_argument unless `order` puts each of `rows` rows into one slot, and groups of `size` have no more.
void check_order(const Order& order, int64_t rows, int64_t size);

}  // namespace tost
