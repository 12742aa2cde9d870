// Copies between memory layouts.
#pragma once

#include "tensor.h"

namespace tost {

// Copies `input` into `output`: same shape (N, C, H, W) or (N, F) and dtype, any strides. Fast where one of them is
// batch-last.
void copy_layout(const char* op, const Tensor& input, Tensor& output);

// `input` in new memory [C][H][W][N], or [F][B].
Tensor to_batch_last(const Tensor& input);

}  // namespace tost
