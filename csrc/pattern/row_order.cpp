// Which rows share a list of columns.
//
// Cost model: a group works through the columns that any of its rows keeps, padded to a multiple of 16 at each tap; an order
// costs the sum over its groups. To minimise it is to cluster sets into clusters of a given size, which is NP-hard. Therefore
//
// 1. Greedily: a group starts with the row of most columns that is in none yet, and grows by the row that adds fewest; of
//    several the one with most columns, so that large rows do not remain for the last groups.
// 2. Local search: two rows of different groups change places where that costs less, until no exchange does or the effort is
//    spent. With all[g] the columns of group g and once[g] those that exactly one of its rows keeps, row b in the place of row
//    a removes |a & once[g]| columns and adds |b - all[g]| + |a & b & once[g]|. The first two are kept in tables for each tap;
//    without the third they bound the cost from below, and few exchanges pass that.
// 3. The natural order remains where this costs no less.
//
// Rows are sets of bits, so that each of these counts is a pass over a few words. Effort is counted in words and not in
// seconds: every machine finds the same order.
#include "row_order.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

namespace tost {

namespace {

// One binary for all machines: counting bits is an instruction on most of them, and one for many words on new ones.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define TOST_COUNTS_BITS __attribute__((target_clones("arch=icelake-server", "popcnt", "default")))
#else
#define TOST_COUNTS_BITS
#endif

using Word = uint64_t;

TOST_COUNTS_BITS int64_t count_bits(const Word* a, int64_t n) {
  int64_t bits = 0;
  for (int64_t k = 0; k < n; ++k) bits += std::popcount(a[k]);
  return bits;
}

TOST_COUNTS_BITS int64_t count_both(const Word* a, const Word* b, int64_t n) {
  int64_t bits = 0;
  for (int64_t k = 0; k < n; ++k) bits += std::popcount(a[k] & b[k]);
  return bits;
}

TOST_COUNTS_BITS int64_t count_in_all(const Word* a, const Word* b, const Word* c, int64_t n) {
  int64_t bits = 0;
  for (int64_t k = 0; k < n; ++k) bits += std::popcount(a[k] & b[k] & c[k]);
  return bits;
}

constexpr int64_t kMostWords = int64_t{1} << 25;  // of the sets of all rows, 256 MB, and of the tables of step 2, half as much
constexpr int64_t kGreedyWords = 400'000'000;     // effort of step 1: rows tried for a place times their words
constexpr int64_t kSearchWords = 500'000'000;     // effort of step 2
constexpr int64_t kStep = 4;                      // words that a look into the tables takes as long as
constexpr int64_t kCall = 8;                      // and a call that counts a row's words, beside them

class Search {
 public:
  Search(const View& view, int64_t size, int64_t block)
      : rows_(view.rows),
        size_(size),
        block_(block),
        taps_(view.taps()),
        tap_words_(ceil_div(ceil_div(view.channels, block), 64)),
        words_(view.taps() * tap_words_),
        groups_(ceil_div(view.rows, size)),
        bits_(view.rows * words_),
        counts_(view.rows) {
    for (int64_t r = 0; r < rows_; ++r) {
      Word* row = bits_.data() + r * words_;
      for (int64_t k = view.start[r]; k < view.start[r + 1]; ++k) {
        const int64_t unit = view.entries[k].channel / block;
        row[view.entries[k].tap * tap_words_ + unit / 64] |= Word{1} << (unit % 64);
      }
      counts_[r] = static_cast<int32_t>(count_bits(row, words_));
    }
  }

  Order run() {
    const Order natural = natural_order(rows_, size_);
    Order order = greedy();
    exchange(order);
    for (int64_t g = 0; g < groups_; ++g)
      std::sort(order.begin() + g * size_, order.begin() + std::min((g + 1) * size_, rows_));
    return cost(order) < cost(natural) ? order : natural;
  }

 private:
  const Word* row(int64_t r) const { return bits_.data() + r * words_; }

  // Columns, padded, of all groups.
  int64_t cost(const Order& order) const {
    int64_t columns = 0;
    std::vector<Word> all(words_);
    for (int64_t g = 0; g < groups_; ++g) {
      std::fill(all.begin(), all.end(), 0);
      for (int64_t s = g * size_; s < std::min((g + 1) * size_, rows_); ++s) add(order[s], all.data());
      for (int64_t t = 0; t < taps_; ++t)
        columns += ceil_div(count_bits(all.data() + t * tap_words_, tap_words_) * block_, kSegment) * kSegment;
    }
    return columns;
  }

  void add(int64_t r, Word* all) const {
    for (int64_t k = 0; k < words_; ++k) all[k] |= row(r)[k];
  }

  // Step 1. Where rows are many, a group takes from the largest of those that wait, as many as the effort allows.
  Order greedy() const {
    Order sorted(rows_);
    std::iota(sorted.begin(), sorted.end(), 0);
    std::stable_sort(sorted.begin(), sorted.end(), [&](int32_t a, int32_t b) { return counts_[a] > counts_[b]; });
    int64_t next = std::min(rows_, std::max(kSegment, kGreedyWords / (rows_ * (words_ + kCall))));
    Order waiting(sorted.begin(), sorted.begin() + next), order;
    std::vector<Word> all(words_);
    while (!waiting.empty()) {
      size_t best = 0;
      if (order.size() % size_ == 0) {
        std::fill(all.begin(), all.end(), 0);
      } else {
        int64_t fewest = std::numeric_limits<int64_t>::max();
        for (size_t k = 0; k < waiting.size() && fewest > 0; ++k) {
          const int64_t fresh = counts_[waiting[k]] - count_both(row(waiting[k]), all.data(), words_);
          if (fresh < fewest) fewest = fresh, best = k;
        }
      }
      add(waiting[best], all.data());
      order.push_back(waiting[best]);
      waiting.erase(waiting.begin() + static_cast<int64_t>(best));
      if (next < rows_) waiting.push_back(sorted[next++]);
    }
    order.resize(groups_ * size_, -1);
    return order;
  }

  // Step 2.
  void exchange(Order& order) {
    int64_t effort = groups_ * rows_ * (words_ + kCall * taps_);
    if (effort > kSearchWords || groups_ * rows_ * taps_ > kMostWords) return;
    all_.assign(groups_ * words_, 0);
    once_.assign(groups_ * words_, 0);
    width_.assign(groups_ * taps_, 0);
    cost_.assign(groups_, 0);
    leaving_.assign(taps_ * rows_, 0);
    joining_.assign(groups_ * taps_ * rows_, 0);
    group_of_.assign(rows_, 0);
    std::vector<int32_t> slot_of(rows_);
    for (int64_t s = 0; s < rows_; ++s) {
      slot_of[order[s]] = static_cast<int32_t>(s);
      group_of_[order[s]] = static_cast<int32_t>(s / size_);
    }
    for (int64_t g = 0; g < groups_; ++g) refresh(order, g);
    std::vector<int32_t> least(rows_);
    for (bool better = true; better;) {
      better = false;
      for (int64_t a = 0; a < rows_; ++a) {
        const int64_t g = group_of_[a];
        least_costs(a, least.data());
        effort += kStep * rows_ * taps_;
        int64_t best = 0, partner = -1;
        for (int64_t b = 0; b < rows_; ++b) {
          const int64_t h = group_of_[b];
          if (h == g) continue;
          const int64_t now = cost_[g] + cost_[h];
          if (now - least[b] <= best) continue;
          const int64_t gain = now - cost_after(a, b, g) - cost_after(b, a, h);
          effort += 2 * (words_ + kCall * taps_);
          if (gain > best) best = gain, partner = b;
        }
        if (partner >= 0) {
          better = true;
          const int64_t h = group_of_[partner];
          std::swap(order[slot_of[a]], order[slot_of[partner]]);
          std::swap(slot_of[a], slot_of[partner]);
          std::swap(group_of_[a], group_of_[partner]);
          refresh(order, g);
          refresh(order, h);
          effort += 2 * rows_ * (words_ + kCall * taps_);
        }
        if (effort > kSearchWords) return;
      }
    }
  }

  // What columns of a group at a tap count for in an exchange: padded ones, plus what they are, as a step towards fewer of
  // them leads to fewer padded ones in the end. Blocks need no padding.
  int32_t weigh(int32_t columns) const {
    constexpr int32_t kPad = static_cast<int32_t>(kSegment);
    return block_ > 1 ? columns : columns + (columns + kPad - 1) / kPad * kPad;
  }

  // For every b: what the groups of a and b would cost at least, were they exchanged.
  void least_costs(int64_t a, int32_t* least) const {
    const int64_t g = group_of_[a];
    std::fill(least, least + rows_, 0);
    std::vector<int32_t> with_a(groups_);
    for (int64_t t = 0; t < taps_; ++t) {
      const int32_t without_a = width_[g * taps_ + t] - leaving_[t * rows_ + a];
      const int32_t* joins = joining_.data() + (g * taps_ + t) * rows_;
      const int32_t* leaves = leaving_.data() + t * rows_;
      for (int64_t h = 0; h < groups_; ++h) with_a[h] = width_[h * taps_ + t] + joining_[(h * taps_ + t) * rows_ + a];
      for (int64_t b = 0; b < rows_; ++b) least[b] += weigh(without_a + joins[b]) + weigh(with_a[group_of_[b]] - leaves[b]);
    }
  }

  // What group g costs when b takes a's place.
  int64_t cost_after(int64_t a, int64_t b, int64_t g) const {
    int64_t cost = 0;
    for (int64_t t = 0; t < taps_; ++t) {
      const int64_t at = t * tap_words_;
      const int64_t both = count_in_all(row(a) + at, row(b) + at, once_.data() + g * words_ + at, tap_words_);
      cost += weigh(width_[g * taps_ + t] - leaving_[t * rows_ + a] + joining_[(g * taps_ + t) * rows_ + b] + both);
    }
    return cost;
  }

  // The tables of group g.
  void refresh(const Order& order, int64_t g) {
    Word* all = all_.data() + g * words_;
    Word* once = once_.data() + g * words_;
    std::fill(all, all + words_, 0);
    std::vector<Word> twice(words_);
    const int64_t begin = g * size_, end = std::min((g + 1) * size_, rows_);
    for (int64_t s = begin; s < end; ++s)
      for (int64_t k = 0; k < words_; ++k) {
        const Word one = row(order[s])[k];
        twice[k] |= all[k] & one;
        all[k] |= one;
      }
    for (int64_t k = 0; k < words_; ++k) once[k] = all[k] & ~twice[k];
    cost_[g] = 0;
    for (int64_t t = 0; t < taps_; ++t) {
      const int64_t at = t * tap_words_;
      width_[g * taps_ + t] = static_cast<int32_t>(count_bits(all + at, tap_words_));
      cost_[g] += weigh(width_[g * taps_ + t]);
      for (int64_t s = begin; s < end; ++s)
        leaving_[t * rows_ + order[s]] = static_cast<int32_t>(count_both(row(order[s]) + at, once + at, tap_words_));
      for (int64_t r = 0; r < rows_; ++r)
        joining_[(g * taps_ + t) * rows_ + r] = static_cast<int32_t>(
            count_bits(row(r) + at, tap_words_) - count_both(row(r) + at, all + at, tap_words_));
    }
  }

  int64_t rows_, size_, block_, taps_, tap_words_, words_, groups_;
  std::vector<Word> bits_;                  // of each row, its columns: `words_` words, `tap_words_` of them for each tap
  std::vector<int32_t> counts_;             // of columns of each row
  std::vector<Word> all_, once_;            // of each group, the columns that any row, and that exactly one row, keeps
  std::vector<int32_t> width_;              // (group, tap): columns
  std::vector<int64_t> cost_;               // of each group
  std::vector<int32_t> leaving_, joining_;  // (tap, row): those that only it keeps in its group. (group, tap, row): new there
  std::vector<int32_t> group_of_;           // of each row
};

}  // namespace

Order natural_order(int64_t rows, int64_t size) {
  Order order(ceil_div(rows, size) * size, -1);
  std::iota(order.begin(), order.begin() + rows, 0);
  return order;
}

void check_order(const Order& order, int64_t rows, int64_t size) {
  bool good = static_cast<int64_t>(order.size()) == ceil_div(rows, size) * size;
  std::vector<bool> seen(rows, false);
  for (size_t slot = 0; good && slot < order.size(); ++slot) {
    const int64_t row = order[slot];
    good = static_cast<int64_t>(slot) < rows ? row >= 0 && row < rows && !seen[row] : row == -1;
    if (good && row >= 0) seen[row] = true;
  }
  if (!good)
    throw std::invalid_argument("order: expected each of " + std::to_string(rows) + " rows once, in groups of " +
                                std::to_string(size) + ", then -1");
}

Order search_order(const View& view, int64_t size, int64_t block) {
  const int64_t words = view.taps() * ceil_div(ceil_div(view.channels, block), 64);
  if (size == 1 || view.rows <= size || words > kMostWords / view.rows) return natural_order(view.rows, size);
  return Search(view, size, block).run();
}

}  // namespace tost
