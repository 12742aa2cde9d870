// What the tiled and the gathered index share: arrays of Python, orders of the rows that came from there, and checks.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include <pybind11/numpy.h>

#include "row_order.h"

namespace tost {

using Ints = pybind11::array_t<int32_t, pybind11::array::c_style>;
using MaybeInts = std::optional<Ints>;

inline std::optional<Order> to_order(const MaybeInts& order) {
  if (!order) return std::nullopt;
  return Order(order->data(), order->data() + order->size());
}

// The order asked for, the natural one where there is none. Throws std::invalid_argument if it is none.
inline Order checked_order(std::optional<Order> order, int64_t count, int64_t rows) {
  if (!order) return natural_order(count, rows);
  check_order(*order, count, rows);
  return *std::move(order);
}

// Throws std::invalid_argument if 32 bits are too few for an index of `length` or a packed weight of `columns` times `rows`.
inline void check_lengths(const std::string& kind, int64_t length, int64_t columns, int64_t rows) {
  if (length > INT32_MAX || columns > INT32_MAX / rows)
    throw std::invalid_argument(
        "pattern: expected its " + kind + " index and its packed weight below 2**31 numbers, got " + std::to_string(length) +
        " and " + std::to_string(columns * rows));
}

}  // namespace tost
