// Tensors as the kernels see them: raw strided views, and new tensors of a given layout.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../checks.h"
#include "../text.h"
#include "bf16.h"

namespace tost {

// The memory order of an activation. batch_last: memory [C][H][W][N] under shape (N, C, H, W), or [F][B] under (B, F).
enum class Layout { contiguous, channels_last, batch_last };

inline std::vector<int64_t> sizes_of(const Tensor& tensor) { return {tensor.sizes().begin(), tensor.sizes().end()}; }

template <class Sizes>
inline std::vector<int64_t> strides_of(const Sizes& shape, Layout layout) {
  const size_t dims = shape.size();
  // Dimensions from the slowest to the fastest in memory.
  std::vector<size_t> order(dims);
  for (size_t d = 0; d < dims; ++d) order[d] = d;
  if (layout == Layout::batch_last && dims > 1) {
    for (size_t d = 0; d + 1 < dims; ++d) order[d] = d + 1;
    order[dims - 1] = 0;
  } else if (layout == Layout::channels_last && dims == 4) {
    order = {0, 2, 3, 1};
  }
  std::vector<int64_t> strides(dims);
  int64_t step = 1;
  for (size_t d = dims; d-- > 0;) {
    strides[order[d]] = step;
    step *= shape[order[d]] > 1 ? shape[order[d]] : 1;
  }
  return strides;
}

inline bool has_layout(const Tensor& tensor, Layout layout) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  const auto wanted = strides_of(sizes, layout);
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] > 1 && strides[d] != wanted[d]) return false;
  }
  return true;
}

// The layout an op's output takes from its input; contiguous wins ties.
inline Layout layout_of(const Tensor& tensor) {
  if (tensor.is_contiguous()) return Layout::contiguous;
  if (has_layout(tensor, Layout::batch_last)) return Layout::batch_last;
  if (tensor.dim() == 4 && has_layout(tensor, Layout::channels_last)) return Layout::channels_last;
  return Layout::contiguous;
}

inline Layout layout_named(const char* op, const char* argument, const std::string& name) {
  if (name == "contiguous") return Layout::contiguous;
  if (name == "channels_last") return Layout::channels_last;
  if (name == "batch_last") return Layout::batch_last;
  fail(op, argument, ": expected batch_last, channels_last or contiguous, got \"", name, "\"");
}

// An uninitialised tensor, on the CPU unless said otherwise. It goes through the dispatcher, so that torch's own options
// (deterministic filling of new memory, dispatch modes) hold for our outputs too.
inline Tensor empty_strided(
    const std::vector<int64_t>& shape, const std::vector<int64_t>& strides, ScalarType dtype,
    torch::stable::Device device = torch::stable::Device(torch::headeronly::DeviceType::CPU)) {
  using torch::headeronly::IntHeaderOnlyArrayRef;
  using torch::stable::detail::from;
  std::array<StableIValue, 6> stack{
      from(IntHeaderOnlyArrayRef(shape)),
      from(IntHeaderOnlyArrayRef(strides)),
      from(std::optional<ScalarType>(dtype)),
      from(std::nullopt),
      from(std::optional<torch::stable::Device>(device)),
      from(std::nullopt)};
  // Not STABLE_TORCH_ERROR_CODE_CHECK: it would report a path of the machine that built the library.
  if (torch_call_dispatcher("aten::empty_strided", "", stack.data(), TORCH_ABI_VERSION) != 0) {
    throw std::runtime_error("could not allocate a tensor of shape " + shape_string(shape));
  }
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor empty(const std::vector<int64_t>& shape, Layout layout, ScalarType dtype) {
  return empty_strided(shape, strides_of(shape, layout), dtype);
}

// Whether a result of so many bytes is written past the caches (simd.h). From about the size of the second cache on it wins
// even where the result is read next (docs/notes/ghost-skip-add.md).
inline bool past_the_caches(int64_t bytes) { return bytes >= int64_t{1} << 20; }
inline bool past_the_caches(const Tensor& x) {
  return past_the_caches(static_cast<int64_t>(x.numel()) * static_cast<int64_t>(x.element_size()));
}

// A 4-D activation (N, C, H, W), or a 2-D one (B, F) seen as (B, F, 1, 1), whose batch items are neighbours: stride 1, or a
// batch of at most one. The other strides in elements, any sign or 0.
template <class T>
struct View {
  T* data;
  int64_t n, c, h, w;
  int64_t stride_c, stride_h, stride_w;
};

template <class T>
inline View<const T> view(const Tensor& tensor) {
  const auto size = tensor.sizes();
  const auto stride = tensor.strides();
  const T* data = static_cast<const T*>(tensor.const_data_ptr());
  if (size.size() == 2) return {data, size[0], size[1], 1, 1, stride[1], 0, 0};
  return {data, size[0], size[1], size[2], size[3], stride[1], stride[2], stride[3]};
}

template <class T>
inline View<T> mutable_view(Tensor& tensor) {
  const auto size = tensor.sizes();
  const auto stride = tensor.strides();
  T* data = static_cast<T*>(tensor.mutable_data_ptr());
  if (size.size() == 2) return {data, size[0], size[1], 1, 1, stride[1], 0, 0};
  return {data, size[0], size[1], size[2], size[3], stride[1], stride[2], stride[3]};
}

}  // namespace tost
