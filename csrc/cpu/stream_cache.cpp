#include "stream_cache.h"

#include <list>
#include <mutex>
#include <unordered_map>

namespace tost {

namespace {

constexpr size_t kMostBytes = size_t{256} << 20;

struct Entry {
  int64_t identity;  // of the pattern
  const int32_t* index;  // where the view's columns are: an index copied elsewhere is another one
  int64_t nnz;
  StreamShape shape;
  std::shared_ptr<const Stream> stream;
  size_t bytes() const {
    // Of a small pattern the entry itself is most of it; 256 for what the containers and allocations add.
    const size_t taps = shape.offset_of_tap.size() + shape.phase_of_tap.size() + shape.class_of_tap.size();
    return sizeof(int32_t) * (stream->offset.size() + stream->position.size() + stream->ptr.size()) +
           sizeof(int64_t) * (taps + shape.channel_pitch.size()) + sizeof(Entry) + sizeof(Stream) + 256;
  }
};

class Cache {
 public:
  std::shared_ptr<const Stream> find(int64_t identity, const int32_t* index, int64_t nnz, const StreamShape& shape) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto [begin, end] = by_identity_.equal_range(identity);
    for (auto at = begin; at != end; ++at) {
      const Entry& entry = *at->second;
      if (entry.index != index || entry.nnz != nnz || !(entry.shape == shape)) continue;
      entries_.splice(entries_.begin(), entries_, at->second);  // the most recently used one
      return entry.stream;
    }
    return nullptr;
  }

  void add(Entry entry) {
    const std::lock_guard<std::mutex> lock(mutex_);
    bytes_ += entry.bytes();
    entries_.push_front(std::move(entry));
    by_identity_.emplace(entries_.front().identity, entries_.begin());
    while (bytes_ > kMostBytes && entries_.size() > 1) drop_last();
  }

 private:
  void drop_last() {
    const auto last = std::prev(entries_.end());
    const auto [begin, end] = by_identity_.equal_range(last->identity);
    for (auto at = begin; at != end; ++at) {
      if (at->second != last) continue;
      by_identity_.erase(at);
      break;
    }
    bytes_ -= last->bytes();
    entries_.erase(last);
  }

  std::mutex mutex_;
  std::list<Entry> entries_;
  std::unordered_multimap<int64_t, std::list<Entry>::iterator> by_identity_;
  size_t bytes_ = 0;
};

Cache& cache() {
  static Cache* const kept = new Cache;  // never destroyed: other threads may still run when the process ends
  return *kept;
}

}  // namespace

std::shared_ptr<const Stream> stream_for(
    const char* op, const PackedIndex& index, const IndexView& view, const StreamShape& shape) {
  const auto build = [&] { return std::make_shared<const Stream>(build_stream(op, view, index.nnz, index.block, shape)); };
  if (index.identity == 0) return build();
  if (auto stream = cache().find(index.identity, view.col, index.nnz, shape)) return stream;
  auto stream = build();
  cache().add({index.identity, view.col, index.nnz, shape, stream});
  return stream;
}

}  // namespace tost
