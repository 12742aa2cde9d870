// What a cuda plan asks of one pass. tost_kernels/cuda_options.py says what the keys mean, and completes every plan.
#pragma once

namespace tost {

enum class ConvAlgorithm { direct, gather };

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

}  // namespace tost
