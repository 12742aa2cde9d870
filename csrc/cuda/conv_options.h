// What a cuda plan asks of one pass. tost_kernels/cuda_options.py says what the keys mean, and completes every plan.
#pragma once

#include <string_view>

namespace tost {

enum class ConvAlgorithm { direct, gather };
enum class ConvPass { forward, input_grad, values_grad };

struct ConvOptions {
  ConvAlgorithm algo = ConvAlgorithm::direct;
  int rows = 1;    // of a row group: what the index was made for
  int chunk = 16;  // channels staged in shared memory at once: what the index was made for
  int pixels = 8;  // of a block's tile
  int warps = 8;
  int stages = 2;  // chunks on their way at once
  int split = 0;   // parts of the sum (values_grad); 0: enough to fill the device
  bool tf32 = false;
};

// What the complete plan `plan` asks of `pass`; "": all defaults. In a plan of row groups a direct pass has rows = 1. Throws
// std::runtime_error naming what is wrong.
ConvOptions parse_options(const char* op, std::string_view plan, ConvPass pass);

}  // namespace tost
