// The op ghost_skip_add on CUDA: its arguments, checked, for the kernels of ghost_skip_add_kernels.h. Schema:
// tost_kernels/ops/ghost_skip_add.py.

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "elementwise_tensor.h"
#include "ghost_skip_add_kernels.h"

namespace tost {
namespace {

using MaybeTensor = std::optional<Tensor>;
constexpr const char* kNames[kParts] = {"u", "ghost", "shortcut"};

// The inputs, checked, in u's layout. Holds the tensors that `tail` points into.
class Inputs {
 public:
  Inputs(const char* op, const MaybeTensor* part, const MaybeTensor (*affine)[4], const MaybeTensor& alpha,
         const MaybeTensor& beta, const std::string& act, const std::vector<int64_t>& norm, const std::vector<double>& eps)
      : u(*part[0]), layout(output_layout(u)), op_(op) {
    check_device(op, "u", u);
    TOST_CHECK(u.dim() >= 2, op, "u: expected shape (N, C, ...), got ", shape_string(u));
    check_kernel_dtype(op, "u", u);
    TOST_CHECK(norm.size() == kParts, op, "norm: expected 3 values, got ", norm.size());
    TOST_CHECK(eps.size() == kParts, op, "eps: expected 3 values, got ", eps.size());
    if (act == "relu") {
      tail.activation = kRelu;
    } else if (act == "pswish") {
      tail.activation = kPSwish;
      TOST_CHECK(beta.has_value(), op, "beta: expected a tensor with act \"pswish\", got None");
      tail.beta_stride = beta->dim() == 0 ? 0 : 1;
      tail.beta = parameter("beta", *beta, beta->dim() == 0);
    } else {
      TOST_CHECK(act == "none", op, "act: expected none, relu or pswish, got \"", act, "\"");
    }
    TOST_CHECK(part[1].has_value() == alpha.has_value(), op, "alpha: expected a tensor with ghost and only then");
    if (alpha.has_value()) tail.alpha = parameter("alpha", *alpha, true);
    for (int p = 0; p < kParts; ++p) {
      if (!part[p].has_value()) continue;
      Part& to = tail.part[p];
      const std::string name = kNames[p];
      to.x = activation(kNames[p], *part[p]).const_data_ptr();
      to.norm = static_cast<int>(norm[p]);
      to.eps = eps[p];
      TOST_CHECK(norm[p] >= kNoNorm && norm[p] <= kBatchStats, op, "norm: expected 0, 1 or 2 for ", name, ", got ", norm[p]);
      const float** fields[4] = {&to.weight, &to.bias, &to.mean, &to.var};
      const char* endings[4] = {"_weight", "_bias", "_mean", "_var"};
      for (int f = 0; f < 4; ++f) {
        if (affine[p][f].has_value()) *fields[f] = parameter(name + endings[f], *affine[p][f], false);
      }
      TOST_CHECK(
          norm[p] != kRunningStats || (to.mean && to.var), op, name, "_mean, ", name,
          "_var: expected tensors with norm 1 (running statistics), got None");
    }
  }

  // A tensor of u's shape and dtype, in u's layout.
  const Tensor& activation(const char* name, const Tensor& x) {
    check_same_device(op_, name, x, u);
    check_shape(op_, name, x, sizes_of(u));
    check_same_dtype(op_, name, x, "u", u);
    return hold(in_layout(x, layout));
  }

  // A 0-dim or a (C,) tensor.
  const float* parameter(const std::string& name, const Tensor& x, bool scalar) {
    check_same_device(op_, name.c_str(), x, u);
    check_dtype(op_, name.c_str(), x, ScalarType::Float);
    if (scalar) {
      check_dim(op_, name.c_str(), x, 0);
    } else {
      check_shape(op_, name.c_str(), x, {u.size(1)});
    }
    return floats(hold(in_layout(x, Layout::contiguous)));
  }

  // Uninitialised, in contiguous memory.
  Tensor empty_floats(const std::vector<int64_t>& shape) const {
    return empty_strided(shape, strides_of(shape, Layout::contiguous), ScalarType::Float, u.device());
  }

  const Tensor u;
  const Layout layout;
  Tail tail;

 private:
  const Tensor& hold(Tensor tensor) {
    held_.push_back(std::move(tensor));
    return held_.back();
  }

  const char* op_;
  std::vector<Tensor> held_;
};

std::tuple<Tensor, Tensor> forward(
    Tensor u, MaybeTensor u_weight, MaybeTensor u_bias, MaybeTensor u_mean, MaybeTensor u_var,
    MaybeTensor ghost, MaybeTensor ghost_weight, MaybeTensor ghost_bias, MaybeTensor ghost_mean, MaybeTensor ghost_var,
    MaybeTensor alpha,
    MaybeTensor shortcut, MaybeTensor shortcut_weight, MaybeTensor shortcut_bias, MaybeTensor shortcut_mean,
    MaybeTensor shortcut_var,
    MaybeTensor beta, Text act, std::vector<int64_t> norm, std::vector<double> eps, Text /*plan*/) {
  const char* op = "ghost_skip_add_cuda";
  check_device(op, "u", u);
  const OnDeviceOf device(u);
  const MaybeTensor parts[kParts] = {u, ghost, shortcut};
  const MaybeTensor affine[kParts][4] = {
      {u_weight, u_bias, u_mean, u_var},
      {ghost_weight, ghost_bias, ghost_mean, ghost_var},
      {shortcut_weight, shortcut_bias, shortcut_mean, shortcut_var}};
  const Inputs in(op, parts, affine, alpha, beta, act, norm, eps);
  Tensor out = empty_like(u, in.layout), stats = in.empty_floats({kParts, 2, u.size(1)});
  if (u.numel() == 0) {
    torch::stable::zero_(stats);
    return {out, stats};
  }
  Scratch scratch(u);
  ghost_skip_add(
      elementwise_call(op, u, in.layout, device, scratch), in.tail, out.mutable_data_ptr(),
      static_cast<float*>(stats.mutable_data_ptr()));
  return {out, stats};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    Tensor grad_output,
    Tensor u, MaybeTensor u_weight, MaybeTensor u_bias, MaybeTensor u_mean, MaybeTensor u_var,
    MaybeTensor ghost, MaybeTensor ghost_weight, MaybeTensor ghost_bias, MaybeTensor ghost_mean, MaybeTensor ghost_var,
    MaybeTensor alpha,
    MaybeTensor shortcut, MaybeTensor shortcut_weight, MaybeTensor shortcut_bias, MaybeTensor shortcut_mean,
    MaybeTensor shortcut_var,
    MaybeTensor beta, Text act, std::vector<int64_t> norm, std::vector<double> eps, Text /*plan*/,
    Tensor stats) {
  const char* op = "ghost_skip_add_backward_cuda";
  check_device(op, "u", u);
  const OnDeviceOf device(u);
  const MaybeTensor parts[kParts] = {u, ghost, shortcut};
  const MaybeTensor affine[kParts][4] = {
      {u_weight, u_bias, u_mean, u_var},
      {ghost_weight, ghost_bias, ghost_mean, ghost_var},
      {shortcut_weight, shortcut_bias, shortcut_mean, shortcut_var}};
  Inputs in(op, parts, affine, alpha, beta, act, norm, eps);
  check_same_device(op, "stats", stats, u);
  check_dtype(op, "stats", stats, ScalarType::Float);
  check_shape(op, "stats", stats, {kParts, 2, u.size(1)});
  const Tensor statistics = in_layout(stats, Layout::contiguous), dy = in.activation("grad_output", grad_output);
  std::vector<Tensor> grads;
  Gradients gradients{};
  for (int p = 0; p < kParts; ++p) {
    grads.push_back(parts[p].has_value() ? empty_like(u, in.layout) : in.empty_floats({0}));
    if (parts[p].has_value()) gradients.part[p] = grads[p].mutable_data_ptr();
  }
  Tensor grad_affine = in.empty_floats({kParts, 2, u.size(1)});
  Tensor grad_alpha = in.empty_floats(alpha.has_value() ? sizes_of(*alpha) : std::vector<int64_t>{0});
  Tensor grad_beta = in.empty_floats(beta.has_value() ? sizes_of(*beta) : std::vector<int64_t>{0});
  if (u.numel() == 0 || in.tail.activation != kPSwish) torch::stable::zero_(grad_beta);
  if (u.numel() == 0) {
    torch::stable::zero_(grad_affine);
    torch::stable::zero_(grad_alpha);
  } else {
    gradients.affine = static_cast<float*>(grad_affine.mutable_data_ptr());
    gradients.alpha = static_cast<float*>(grad_alpha.mutable_data_ptr());
    gradients.beta = static_cast<float*>(grad_beta.mutable_data_ptr());
    Scratch scratch(u);
    ghost_skip_add_backward(
        elementwise_call(op, u, in.layout, device, scratch), in.tail, dy.const_data_ptr(), floats(statistics), gradients);
  }
  for (int p = 0; p < kParts; ++p) {
    if (parts[p].has_value()) grads[p] = in_layout(grads[p], output_layout(*parts[p]));
  }
  return {grads[0], grads[1], grads[2], grad_affine, grad_alpha, grad_beta};
}

}  // namespace
}  // namespace tost

STABLE_TORCH_LIBRARY_IMPL(tost, TOST_CUDA_KEY, m) {
  m.impl("ghost_skip_add_cuda", TORCH_BOX(&tost::forward));
  m.impl("ghost_skip_add_backward_cuda", TORCH_BOX(&tost::backward));
}
