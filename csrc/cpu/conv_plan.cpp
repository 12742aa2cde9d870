#include "conv_plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>
#include <utility>

#include <torch/csrc/stable/library.h>

#include "../checks.h"
#include "../text.h"

namespace tost {

namespace {

struct Registers {
  int64_t rows, vectors;
};

// The tiles conv_kernels.h is compiled for.
constexpr Registers kTiles[] = {{4, 4}, {2, 8}, {1, 16}, {2, 4}, {1, 8}, {1, 4}};

// Those compiled with known shifts besides.
struct KnownTile {
  Tile tile;
  bool y;  // on both axes; else on x alone
};
constexpr KnownTile kKnownTiles[] = {
    {{4, 4, 1}, true}, {{2, 2, 4}, true}, {{2, 8, 1}, false}, {{2, 2, 2}, true}, {{2, 4, 1}, false}};

bool compiled(int64_t rows, int64_t vectors, Isa isa) {
  for (const Registers& tile : kTiles) {
    if (tile.rows == rows && tile.vectors == vectors) return isa >= Isa::avx512 || rows * vectors <= 8;
  }
  return false;
}

void check_compiled(const char* op, const Tile& tile, Isa isa) {
  TOST_CHECK(
      compiled(tile.rows, tile.columns * tile.batches, isa), op, "plan: expected a tile that is compiled for ",
      isa_name(isa), " (rows x vectors: ", isa >= Isa::avx512 ? "4x4, 2x8, 1x16, " : "", "2x4, 1x8, 1x4), got ", tile.rows,
      "x", tile.columns * tile.batches);
}

const std::pair<ConvPass, std::string> kPrefixes[] = {
    {ConvPass::forward, "forward."}, {ConvPass::input_grad, "input_grad."}, {ConvPass::values_grad, "values_grad."}};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Reads "4x4" or "2x2x4"; false if it is neither.
bool parse_numbers(const std::string& text, std::vector<int64_t>& numbers) {
  if (!text.empty() && text.back() == 'x') return false;  // getline would not see the empty number after it
  std::istringstream stream(text);
  std::string part;
  while (std::getline(stream, part, 'x')) {
    if (part.empty() || part.size() > 9 || part.find_first_not_of("0123456789") != std::string::npos) return false;
    numbers.push_back(std::stoll(part));
    if (numbers.back() < 1) return false;
  }
  return !numbers.empty();
}

// In units of one fused multiply-add on vectors.
constexpr double kLatency = 4;        // fewer accumulators than this do not go faster
constexpr double kWeightOverhead = 1.5;  // broadcast and loop
struct Costs {
  double product;    // of one kept weight and one source vector
  double pack_vector, pack_row;
  double odd_batch;  // factor for tiles of an odd number of batch vectors
};
// kDots: bfloat16 stays what it is (conv_packed.h). Two vectors are a cache line there, so that an odd number means loads across
// lines, and results written by halves of them.
constexpr Costs kFloats{1, 2, 0, 1}, kDots{0.65, 1, 1, 1.2};

}  // namespace

int64_t lanes(Isa isa) { return isa >= Isa::avx512 ? 16 : isa == Isa::avx2 ? 8 : 4; }

ConvOptions parse_options(const char* op, const std::string& plan, ConvPass pass) {
  const auto wrong = [&] {
    fail(
        op, "plan: expected \"\", \"tile=4x4\", \"tile=2x2x4\", \"block=32\" or several with commas, each for all passes or, after "
        "\"forward.\", \"input_grad.\" or \"values_grad.\", for one, got \"", plan, "\"");
  };
  if (!plan.empty() && plan.back() == ',') wrong();
  ConvOptions plain, own;
  std::istringstream stream(plan);
  std::string part;
  while (std::getline(stream, part, ',')) {
    ConvOptions* target = &plain;
    ConvOptions others;
    for (const auto& [prefixed, prefix] : kPrefixes) {
      if (part.compare(0, prefix.size(), prefix) != 0) continue;
      target = prefixed == pass ? &own : &others;
      part.erase(0, prefix.size());
      break;
    }
    const size_t equals = part.find('=');
    const std::string key = part.substr(0, equals);
    std::vector<int64_t> numbers;
    const bool read = equals != std::string::npos && parse_numbers(part.substr(equals + 1), numbers);
    if (read && key == "tile" && (numbers.size() == 2 || numbers.size() == 3)) {
      target->tile = {numbers[0], numbers[1], numbers.size() == 3 ? numbers[2] : 1};
      check_compiled(op, target->tile, isa());
    } else if (read && key == "block" && numbers.size() == 1) {
      target->block = numbers[0];
    } else {
      wrong();
    }
  }
  if (own.tile.rows == 0) own.tile = plain.tile;
  if (own.block == 0) own.block = plain.block;
  return own;
}

Known shifts_known(const Tile& tile, const TileNeed& need, Isa isa) {
  if (!compiled(tile.rows, tile.columns * tile.batches, isa)) return {false, false};
  const bool x = need.x.near && tile.columns == need.x.count;
  const bool y = need.y.near && tile.rows == need.y.count;
  // Rows that do not exist would have to be left out of a strip.
  const bool strip = x && need.y.count % tile.rows == 0;
  for (const KnownTile& known : kKnownTiles) {
    const Tile& its = known.tile;
    if (isa == Isa::avx512bf16 && its.batches == 1) continue;  // a load spans two pixels there, of which one may not exist
    if (its.rows != tile.rows || its.columns != tile.columns || its.batches != tile.batches) continue;
    if (known.y ? x && y : strip) return {known.y, true};
  }
  return {false, false};
}

Tile choose_tile(const char* op, const ConvOptions& options, const TileNeed& need, Isa isa) {
  if (options.tile.rows > 0) {
    check_compiled(op, options.tile, isa);
    return options.tile;
  }
  const int64_t batch_vectors = std::max<int64_t>(1, ceil_div(need.batch, lanes(isa)));
  const Costs& costs = isa == Isa::avx512bf16 ? kDots : kFloats;
  Tile best{1, 1, 4};
  double least = std::numeric_limits<double>::infinity();
  for (const Registers& registers : kTiles) {
    if (!compiled(registers.rows, registers.vectors, isa)) continue;
    for (int64_t columns = registers.vectors; columns >= 1; columns /= 2) {
      const Tile tile{registers.rows, columns, registers.vectors / columns};
      const double tasks = static_cast<double>(
          ceil_div(need.y.count, tile.rows) * ceil_div(need.x.count, tile.columns) * ceil_div(batch_vectors, tile.batches));
      const Known known = shifts_known(tile, need, isa);
      const double packed_rows =
          static_cast<double>(need.y.planes * (tile.rows + (known.y ? 0 : need.y.halo)) * need.x.planes);
      const double packed =
          packed_rows * static_cast<double>((tile.columns + (known.x ? 0 : need.x.halo)) * tile.batches);
      // Of three taps, one has a product for every pixel, two for all but one.
      const auto present = [](bool is_known, int64_t count) {
        return is_known ? 1.0 - 2.0 / (3.0 * static_cast<double>(count)) : 1.0;
      };
      const double products = static_cast<double>(tile.rows * registers.vectors) * present(known.y, need.y.count) *
                              present(known.x, need.x.count);
      const double multiply = std::max(kLatency, products * costs.product) + kWeightOverhead;
      const double pack = packed * costs.pack_vector + packed_rows * costs.pack_row;
      const double cost =
          tasks * (need.weights_per_channel * multiply + pack) * (tile.batches % 2 == 0 ? 1.0 : costs.odd_batch);
      if (cost < least) {
        least = cost;
        best = tile;
      }
    }
  }
  return best;
}

int64_t choose_block(
    const ConvOptions& options, Isa isa, bool gathers, int64_t channels, int64_t channel_numbers, int64_t multiple,
    double weights_per_row_and_channel, int64_t classes) {
  // Measured on Zen 4 (docs/notes/cpu-masked-conv2d.md): a tile slightly larger than the first cache is best, and a larger
  // one where the runs would be too short. Nine classes cut a run into nine.
  struct Limits {
    int64_t usual, most;  // bytes
    double run;           // kept weights of a row in a block
  };
  constexpr Limits kPlain{36 << 10, 80 << 10, 5}, kNineClasses{36 << 10, 128 << 10, 27}, kInTwos{48 << 10, 144 << 10, 14};
  if (options.block > 0) return std::min(options.block, channels);
  const bool dots = isa == Isa::avx512bf16;
  // Weights taken in twos want longer runs.
  const Limits& limits = dots && gathers ? kInTwos : classes == 9 ? kNineClasses : kPlain;
  const int64_t bytes = std::max<int64_t>(1, channel_numbers) * (dots ? 2 : 4);
  const int64_t usual = std::max<int64_t>(1, limits.usual / bytes), most = std::max<int64_t>(1, limits.most / bytes);
  const double for_runs = weights_per_row_and_channel > 0 ? std::ceil(limits.run / weights_per_row_and_channel) : 1e9;
  const int64_t wanted = static_cast<int64_t>(std::min(for_runs, static_cast<double>(channels)));
  int64_t block = std::max(usual, std::min(wanted, most));
  if (block >= channels) return channels;
  block = ceil_div(channels, ceil_div(channels, block));  // blocks of about equal size
  return std::min(channels, std::max(multiple, (block + multiple / 2) / multiple * multiple));
}

namespace {

// What tuning may choose from on this machine: every compiled tile, "4x4x1,4x2x2,...", that fits the pixels of a result of
// rows x columns and its batch, each up to the next power of two. Here, so that a new entry of kTiles is tuned too.
std::string cpu_tiles(int64_t rows, int64_t columns, int64_t batch) {
  const auto fits = [](int64_t tile, int64_t count) { return tile == 1 || tile < 2 * count; };
  const int64_t batch_vectors = ceil_div(batch, lanes(isa()));
  std::ostringstream tiles;
  const char* comma = "";
  for (const Registers& registers : kTiles) {
    if (!compiled(registers.rows, registers.vectors, isa()) || !fits(registers.rows, rows)) continue;
    for (int64_t across = registers.vectors; across >= 1; across /= 2) {
      if (!fits(across, columns) || !fits(registers.vectors / across, batch_vectors)) continue;
      tiles << comma << registers.rows << 'x' << across << 'x' << registers.vectors / across;
      comma = ",";
    }
  }
  return tiles.str();
}

// What `plan` asks of the pass named `which`, in the words of a plan.
std::string cpu_plan(const Text& plan, const Text& which) {
  const std::string wanted = std::string(which) + ".";
  for (const auto& [pass, prefix] : kPrefixes) {
    if (prefix != wanted) continue;
    const ConvOptions options = parse_options("cpu_plan", plan, pass);
    const Tile& tile = options.tile;
    std::ostringstream text;
    if (tile.rows > 0) text << "tile=" << tile.rows << 'x' << tile.columns << 'x' << tile.batches;
    if (options.block > 0) text << (tile.rows > 0 ? "," : "") << "block=" << options.block;
    return text.str();
  }
  fail("cpu_plan", "which: expected forward, input_grad or values_grad, got ", std::string(which));
}

}  // namespace

}  // namespace tost

STABLE_TORCH_LIBRARY_IMPL(tost, CompositeExplicitAutograd, m) {
  m.impl("cpu_plan", TORCH_BOX(&tost::cpu_plan));
  m.impl("cpu_tiles", TORCH_BOX(&tost::cpu_tiles));
}
