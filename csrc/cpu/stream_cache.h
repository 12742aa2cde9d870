// Streams are built once for a pattern and a geometry, not at every call.
#pragma once

#include <memory>

#include "stream.h"

namespace tost {

// The stream of `index` (its forward or transposed `view`) for `shape`: kept from an earlier call where the index has an
// identity (see packed_index.h), else built. The least recently used ones go when all together exceed 256 MB.
std::shared_ptr<const Stream> stream_for(
    const char* op, const PackedIndex& index, const IndexView& view, const StreamShape& shape);

}  // namespace tost
