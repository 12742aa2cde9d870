// A string argument of an op. Declare it as `Text`, not as std::string: up to torch 2.13 the stable ABI's own conversion
// allocates a std::string on the heap for each string argument of each call and never frees it, which adds up to
// gigabytes over a night of training.
#pragma once

#include <string>

#include <torch/csrc/stable/library.h>

namespace tost {

struct Text : std::string {
  using std::string::string;
};

}  // namespace tost

HIDDEN_NAMESPACE_BEGIN(torch, stable, detail)

// Takes over, and deletes, the string behind the handle.
template <>
struct ToImpl<tost::Text> {
  static tost::Text call(StableIValue value, [[maybe_unused]] uint64_t build_version, [[maybe_unused]] bool is_internal) {
    const StringHandle handle = to<StringHandle>(value);
    size_t length = 0;
    const char* data = nullptr;
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    tost::Text text(data, length);
    TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return text;
  }
};

HIDDEN_NAMESPACE_END(torch, stable, detail)
