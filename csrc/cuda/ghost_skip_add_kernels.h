// ghost_skip_add: out = act(norm(u) + alpha norm(ghost) + norm(shortcut)), forward and backward.
//
// Memory is all that counts, so the design is a list of passes. E bytes an element (4 or 2), P parts, B of them with the
// batch's statistics:
//   forward   1. moments    reads the B parts                               B E   (no launch where B = 0)
//             2. apply      reads the P parts, writes out            (P + 1) E
//   backward  1. sums       reads grad_output and the P parts        (P + 1) E
//             2. gradients  reads the same, writes P gradients      (2 P + 1) E   (where B = 0, pass 1 writes them)
// Nothing but the inputs and the statistics is saved. A part that no result depends on is not read. Passes 2 go through memory
// backwards: what pass 1 read last may still be in the L2 cache.
//
// Which parts there are, their norms and the activation are read at run time: branches that all threads take alike cost
// nothing beside memory, and one kernel a pass and width of move serves all calls. Loads come before whatever needs them, so
// that those of all parts are on their way together.
//
// No third launch adds up partial sums: each block of a second pass adds up its own channels' when it begins (channels.h), and one
// block more has what is summed over all channels.
#pragma once

#include "ghost_backward_kernels.h"
#include "ghost_forward_kernels.h"

namespace tost {

// out: like u. stats: (3, 2, C).
inline void ghost_skip_add(const ElementwiseCall& call, const Tail& tail, void* out, float* stats) {
  const Walk w = share_out(call, {tail.part[0].x, tail.part[1].x, tail.part[2].x, out});
  double* partial = nullptr;
  if (tail.any_batch_stats()) {
    partial = static_cast<double*>(call.scratch(sizeof(double) * 2 * kParts * w.channels * w.splits));
  }
  with_constants(call.bf16, w, [&]<class T, int V, int K>() {
    if (partial) launch(call.op, ghost_moments_kernel<T, V, K>, w.grid(), call.stream, tail, w, partial);
    launch(call.op, ghost_apply_kernel<T, V, K>, w.grid(), call.stream, tail, w, partial, static_cast<T*>(out), stats);
  });
}

inline void ghost_skip_add_backward(
    const ElementwiseCall& call, const Tail& tail, const void* dy, const float* stats, const Gradients& gradients) {
  const Walk w = share_out(
      call, {dy, tail.part[0].x, tail.part[1].x, tail.part[2].x, gradients.part[0], gradients.part[1], gradients.part[2]});
  auto* partial = static_cast<double*>(call.scratch(sizeof(double) * kSums * w.channels * w.splits));
  const bool one_pass = !tail.any_batch_stats();
  Grid second = w.grid(1);
  if (one_pass) second.blocks.x = 1;
  with_constants(call.bf16, w, [&]<class T, int V, int K>() {
    const auto* grad = static_cast<const T*>(dy);
    launch(call.op, ghost_sums_kernel<T, V, K>, w.grid(), call.stream, tail, w, grad, stats, partial, gradients, one_pass);
    launch(call.op, ghost_gradients_kernel<T, V, K>, second, call.stream, tail, w, grad, stats, partial, gradients);
  });
}

}  // namespace tost
