// Until the other kernels are here.
#include "conv_call.h"
namespace tost {
__attribute__((weak)) void direct_multiply(const ConvCall&, bool, const void*, const void*, const void*, void*) {
  throw std::runtime_error("direct_multiply: not written yet");
}
__attribute__((weak)) void gather_multiply(const ConvCall&, bool, const void*, const void*, const void*, void*) {
  throw std::runtime_error("gather_multiply: not written yet");
}
__attribute__((weak)) void gather_values_grad(const ConvCall&, const void*, const void*, void*) {
  throw std::runtime_error("gather_values_grad: not written yet");
}
__attribute__((weak)) void direct_values_grad(const ConvCall&, const void*, const void*, void*) {
  throw std::runtime_error("direct_values_grad: not written yet");
}
}  // namespace tost
