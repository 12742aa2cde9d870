// ghost_skip_add: act(norm(u) + alpha * norm(ghost) + norm(shortcut)), forward and backward.
// A channel is finished before the next one is begun, so that its second pass finds it in cache; threads share out channels,
// and sums over channels are taken in order: no bit depends on the number of threads.

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "channels.h"
#include "isa.h"
#include "scratch.h"

namespace tost {
namespace {

constexpr int kParts = 3;  // u, ghost, shortcut
constexpr int64_t kBlock = 1024;  // elements: 4 KB, so that a block of every tensor fits into L1
enum NormKind { kNoNorm = 0, kRunningStats = 1, kBatchStats = 2 };
enum Act { kNone = 0, kRelu = 1, kPSwish = 2 };

struct Part {
  const void* data = nullptr;  // nullptr: absent
  const float *weight = nullptr, *bias = nullptr, *mean = nullptr, *var = nullptr;  // (C,) each
  int64_t norm = kNoNorm;
  double eps = 0;
};

// A part in one channel: (x - center) * scale + shift; invstd is 1 / sqrt(variance + eps), 1 without a norm.
struct Affine {
  float center, scale;
  double shift, invstd;
};

struct Tail {
  Part part[kParts];
  Channels channels;
  int act = kNone;
  float alpha = 0;
  const float* beta = nullptr;
  int64_t beta_stride = 0;
  bool streaming = false;  // results go past the caches

  // At alpha == 0 the ghost is skipped, not multiplied: its NaN would spread.
  bool live(int p) const { return part[p].data != nullptr && (p != 1 || alpha != 0.0f); }
  float beta_of(int64_t c) const { return beta ? beta[c * beta_stride] : 0.0f; }
};

template <class T>
struct Gradients {
  T* grad[kParts];
  float* affine;  // (3, 2, C): dweight, dbias of each part
  double *alpha, *beta;  // (C,): what each channel adds
};

}  // namespace
}  // namespace tost

#define TOST_KERNELS "ghost_skip_add_kernels.h"
#include "per_isa.h"

namespace tost {
namespace {

using MaybeTensor = std::optional<Tensor>;
constexpr const char* kNames[kParts] = {"u", "ghost", "shortcut"};

// The inputs, checked, in the layout that is computed in. Holds the tensors that `tail` points into.
struct Inputs {
  Tail tail;
  Layout output, compute;
  ScalarType dtype;
  std::vector<int64_t> shape;
  std::vector<Tensor> held;

  Inputs(const char* op, const MaybeTensor* part, const MaybeTensor (*affine)[4], const MaybeTensor& alpha,
         const MaybeTensor& beta, const std::string& act, const std::vector<int64_t>& norm, const std::vector<double>& eps)
      : op_(op) {
    const Tensor& u = *part[0];
    TOST_CHECK(u.dim() >= 2, op, "u: expected shape (N, C, ...), got ", shape_string(u));
    TOST_CHECK(norm.size() == kParts, op, "norm: expected 3 values, got ", norm.size());
    TOST_CHECK(eps.size() == kParts, op, "eps: expected 3 values, got ", eps.size());
    output = output_layout(u);
    compute = planar(output);
    dtype = u.scalar_type();
    shape = sizes_of(u);
    tail.channels = channels_of(u, compute);
    tail.streaming = past_the_caches(u);
    if (act == "relu") {
      tail.act = kRelu;
    } else if (act == "pswish") {
      tail.act = kPSwish;
      TOST_CHECK(beta.has_value(), op, "beta: expected a tensor with act \"pswish\", got None");
      tail.beta_stride = beta->dim() == 0 ? 0 : 1;
      tail.beta = beta->dim() == 0 ? scalar("beta", *beta) : per_channel("beta", *beta);
    } else {
      TOST_CHECK(act == "none", op, "act: expected none, relu or pswish, got \"", act, "\"");
    }
    TOST_CHECK(part[1].has_value() == alpha.has_value(), op, "alpha: expected a tensor with ghost and only then");
    if (alpha.has_value()) tail.alpha = *scalar("alpha", *alpha);
    for (int p = 0; p < kParts; ++p) {
      if (!part[p].has_value()) continue;
      Part& to = tail.part[p];
      const std::string name = kNames[p];
      to.data = activation(kNames[p], *part[p]).const_data_ptr();
      to.norm = norm[p];
      to.eps = eps[p];
      TOST_CHECK(norm[p] >= kNoNorm && norm[p] <= kBatchStats, op, "norm: expected 0, 1 or 2 for ", name, ", got ", norm[p]);
      const float** fields[4] = {&to.weight, &to.bias, &to.mean, &to.var};
      const char* endings[4] = {"_weight", "_bias", "_mean", "_var"};
      for (int f = 0; f < 4; ++f) {
        if (affine[p][f].has_value()) *fields[f] = per_channel((name + endings[f]).c_str(), *affine[p][f]);
      }
      TOST_CHECK(
          norm[p] != kRunningStats || (to.mean && to.var), op, name, "_mean, ", name,
          "_var: expected tensors with norm 1 (running statistics), got None");
    }
  }

  // A tensor of u's shape and dtype, in the layout that is computed in.
  Tensor activation(const char* name, const Tensor& x) {
    check_cpu(op_, name, x);
    check_kernel_dtype(op_, name, x);
    check_shape(op_, name, x, shape);
    TOST_CHECK(
        x.scalar_type() == dtype, op_, name, ": expected the dtype of u (", dtype_name(dtype), "), got ",
        dtype_name(x.scalar_type()));
    return hold(in_layout(x, compute));
  }

 private:
  Tensor hold(Tensor tensor) {
    held.push_back(std::move(tensor));
    return held.back();
  }
  const float* scalar(const char* name, const Tensor& x) {
    check_dim(op_, name, x, 0);
    return floats(name, x);
  }
  const float* per_channel(const char* name, const Tensor& x) {
    check_shape(op_, name, x, {tail.channels.count});
    return floats(name, x);
  }
  const float* floats(const char* name, const Tensor& x) {
    check_cpu(op_, name, x);
    check_dtype(op_, name, x, ScalarType::Float);
    static const float none = 0;  // a pointer for C = 0, whose data pointer may be null
    const auto* data = static_cast<const float*>(hold(in_layout(x, Layout::contiguous)).const_data_ptr());
    return data ? data : &none;
  }

  const char* op_;
};

template <class T>
void forward(const Inputs& in, Tensor& out, Tensor& stats) {
  const auto kernel = TOST_PER_ISA(forward_channels<T>);
  T* to = static_cast<T*>(out.mutable_data_ptr());
  float* statistics = static_cast<float*>(stats.mutable_data_ptr());
  const Channels& k = in.tail.channels;
  torch::stable::parallel_for(0, k.count, channel_grain(k), [&](int64_t begin, int64_t end) {
    kernel(in.tail, to, statistics, begin, end);
  });
}

template <class T>
void backward(const Inputs& in, const Tensor& grad_output, const Tensor& stats, Gradients<T>& gradients) {
  const auto kernel = TOST_PER_ISA(backward_channels<T>);
  const T* dy = static_cast<const T*>(grad_output.const_data_ptr());
  const float* statistics = static_cast<const float*>(stats.const_data_ptr());
  const Channels& k = in.tail.channels;
  const bool keeps_dz = in.tail.act == kPSwish || (in.tail.part[1].data != nullptr && !in.tail.live(1));
  torch::stable::parallel_for(0, k.count, channel_grain(k), [&](int64_t begin, int64_t end) {
    kernel(in.tail, dy, statistics, gradients, keeps_dz ? thread_scratch(k.size()) : nullptr, begin, end);
  });
}

std::tuple<Tensor, Tensor> ghost_skip_add(
    Tensor u, MaybeTensor u_weight, MaybeTensor u_bias, MaybeTensor u_mean, MaybeTensor u_var,
    MaybeTensor ghost, MaybeTensor ghost_weight, MaybeTensor ghost_bias, MaybeTensor ghost_mean, MaybeTensor ghost_var,
    MaybeTensor alpha,
    MaybeTensor shortcut, MaybeTensor shortcut_weight, MaybeTensor shortcut_bias, MaybeTensor shortcut_mean,
    MaybeTensor shortcut_var,
    MaybeTensor beta, Text act, std::vector<int64_t> norm, std::vector<double> eps, Text /*plan*/) {
  const MaybeTensor parts[kParts] = {u, ghost, shortcut};
  const MaybeTensor affine[kParts][4] = {
      {u_weight, u_bias, u_mean, u_var},
      {ghost_weight, ghost_bias, ghost_mean, ghost_var},
      {shortcut_weight, shortcut_bias, shortcut_mean, shortcut_var}};
  const Inputs in("ghost_skip_add_cpu", parts, affine, alpha, beta, act, norm, eps);
  Tensor out = empty(in.shape, in.compute, in.dtype);
  Tensor stats = empty({kParts, 2, in.tail.channels.count}, Layout::contiguous, ScalarType::Float);
  in.dtype == ScalarType::Float ? forward<float>(in, out, stats) : forward<bf16>(in, out, stats);
  return {in_layout(out, in.output), stats};
}

template <class T>
void run_backward(
    const Inputs& in, const Tensor& grad_output, const Tensor& stats, std::vector<Tensor>& grads, Tensor& affine,
    std::vector<double>& alpha, std::vector<double>& beta) {
  Gradients<T> gradients;
  for (int p = 0; p < kParts; ++p) {
    gradients.grad[p] = in.tail.live(p) ? static_cast<T*>(grads[p].mutable_data_ptr()) : nullptr;
  }
  gradients.affine = static_cast<float*>(affine.mutable_data_ptr());
  gradients.alpha = alpha.data();
  gradients.beta = beta.data();
  backward<T>(in, grad_output, stats, gradients);
}

// The gradient of a 0-dim or (C,) tensor (of neither: an empty one) from what each channel adds.
Tensor collect(const MaybeTensor& of, const std::vector<double>& channels) {
  if (!of.has_value()) return empty({0}, Layout::contiguous, ScalarType::Float);
  Tensor grad = empty(sizes_of(*of), Layout::contiguous, ScalarType::Float);
  float* to = static_cast<float*>(grad.mutable_data_ptr());
  if (of->dim() == 0) {
    double total = 0;
    for (const double part : channels) total += part;
    *to = static_cast<float>(total);
  } else {
    std::copy(channels.begin(), channels.end(), to);
  }
  return grad;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> ghost_skip_add_backward(
    Tensor grad_output,
    Tensor u, MaybeTensor u_weight, MaybeTensor u_bias, MaybeTensor u_mean, MaybeTensor u_var,
    MaybeTensor ghost, MaybeTensor ghost_weight, MaybeTensor ghost_bias, MaybeTensor ghost_mean, MaybeTensor ghost_var,
    MaybeTensor alpha,
    MaybeTensor shortcut, MaybeTensor shortcut_weight, MaybeTensor shortcut_bias, MaybeTensor shortcut_mean,
    MaybeTensor shortcut_var,
    MaybeTensor beta, Text act, std::vector<int64_t> norm, std::vector<double> eps, Text /*plan*/,
    Tensor stats) {
  const char* op = "ghost_skip_add_backward_cpu";
  const MaybeTensor parts[kParts] = {u, ghost, shortcut};
  const MaybeTensor affine[kParts][4] = {
      {u_weight, u_bias, u_mean, u_var},
      {ghost_weight, ghost_bias, ghost_mean, ghost_var},
      {shortcut_weight, shortcut_bias, shortcut_mean, shortcut_var}};
  Inputs in(op, parts, affine, alpha, beta, act, norm, eps);
  const int64_t channels = in.tail.channels.count;
  check_dtype(op, "stats", stats, ScalarType::Float);
  check_shape(op, "stats", stats, {kParts, 2, channels});
  const Tensor statistics = in_layout(stats, Layout::contiguous);
  const Tensor dy = in.activation("grad_output", grad_output);
  std::vector<Tensor> grads;
  for (int p = 0; p < kParts; ++p) {
    if (!parts[p].has_value()) {
      grads.push_back(empty({0}, Layout::contiguous, ScalarType::Float));
    } else {
      grads.push_back(empty(in.shape, in.compute, in.dtype));
      if (!in.tail.live(p)) torch::stable::zero_(grads[p]);
    }
  }
  Tensor grad_affine = empty({kParts, 2, channels}, Layout::contiguous, ScalarType::Float);
  std::vector<double> alpha_parts(channels, 0.0), beta_parts(channels, 0.0);
  in.dtype == ScalarType::Float
      ? run_backward<float>(in, dy, statistics, grads, grad_affine, alpha_parts, beta_parts)
      : run_backward<bf16>(in, dy, statistics, grads, grad_affine, alpha_parts, beta_parts);
  for (int p = 0; p < kParts; ++p) {
    if (parts[p].has_value()) grads[p] = in_layout(grads[p], output_layout(*parts[p]));
  }
  return {grads[0], grads[1], grads[2], grad_affine, collect(alpha, alpha_parts), collect(beta, beta_parts)};
}

}  // namespace
}  // namespace tost

STABLE_TORCH_LIBRARY_IMPL(tost, CPU, m) {
  m.impl("ghost_skip_add_cpu", TORCH_BOX(&tost::ghost_skip_add));
  m.impl("ghost_skip_add_backward_cpu", TORCH_BOX(&tost::ghost_skip_add_backward));
}
