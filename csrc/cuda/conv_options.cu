// The plan string. Every call reads it, so nothing here allocates memory until something is wrong.

#include "conv_options.h"

#include <array>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace tost {
namespace {

enum Key { kAlgo, kRows, kChunk, kPixels, kWarps, kStages, kSplit, kPrecision, kKeys };
constexpr std::string_view kNames[kKeys] = {"algo", "rows", "chunk", "pixels", "warps", "stages", "split", "precision"};
constexpr std::string_view kPasses[] = {"forward", "input_grad", "values_grad"};
constexpr bool kWholePlan[kKeys] = {false, true, true, false, false, false, false, true};
enum Precision { kIeee, kTf32 };

struct Reader {
  const char* op;
  std::string_view plan;

  [[noreturn]] void fail(const std::string& expected, std::string_view got) const {
    throw std::runtime_error(
        std::string(op) + ": plan: expected " + expected + ", got \"" + std::string(got) + "\" in \"" + std::string(plan) + "\"");
  }

  // Of up to three digits, without zeros before them, as tost_kernels/cuda_options.py has it; -1: it is none.
  static int number(std::string_view text) {
    if (text.empty() || text.size() > 3 || text.front() == '0') return -1;
    int value = 0;
    for (const char c : text) {
      if (c < '0' || c > '9') return -1;
      value = value * 10 + (c - '0');
    }
    return value;
  }

  int number(std::string_view text, std::string_view key, std::initializer_list<int> choices) const {
    const int value = number(text);
    for (const int choice : choices) {
      if (value == choice) return value;
    }
    std::string all;
    for (const int choice : choices) all += (all.empty() ? "" : ", ") + std::to_string(choice);
    fail(std::string(key) + " to be one of " + all, text);
  }

  int value(Key key, std::string_view text) const {
    switch (key) {
      case kAlgo:
        if (text == "direct") return static_cast<int>(ConvAlgorithm::direct);
        if (text == "gather") return static_cast<int>(ConvAlgorithm::gather);
        fail("algo to be direct or gather", text);
      case kPrecision:
        if (text == "ieee") return kIeee;
        if (text == "tf32") return kTf32;
        fail("precision to be ieee or tf32", text);
      case kRows: return number(text, "rows", {1, 2, 4, 16, 32});
      case kChunk: return number(text, "chunk", {8, 16, 32, 64});
      case kPixels: return number(text, "pixels", {4, 8, 16});
      case kWarps: return number(text, "warps", {4, 8, 16});
      case kStages: return number(text, "stages", {1, 2, 3});
      default: break;
    }
    const int split = number(text);
    if (split < 1 || split > 256) fail("split to be a number from 1 to 256", text);
    return split;
  }
};

}  // namespace

ConvOptions parse_options(const char* op, std::string_view plan, ConvPass pass) {
  const Reader read{op, plan};
  constexpr int kOpen = -1;
  std::array<std::array<int, kKeys>, 4> asked;  // of all passes, then of each
  for (auto& values : asked) values.fill(kOpen);
  for (std::string_view rest = plan; !rest.empty();) {
    const size_t comma = rest.find(',');
    const std::string_view item = rest.substr(0, comma);
    rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
    const size_t equals = item.find('=');
    std::string_view name = item.substr(0, equals);
    int which = 0;
    for (int p = 0; p < 3; ++p) {
      if (name.size() > kPasses[p].size() && name.substr(0, kPasses[p].size()) == kPasses[p] && name[kPasses[p].size()] == '.') {
        which = p + 1;
        name.remove_prefix(kPasses[p].size() + 1);
        break;
      }
    }
    int key = 0;
    while (key < kKeys && name != kNames[key]) ++key;
    if (equals == std::string_view::npos || key == kKeys) {
      read.fail("key=value with algo, rows, chunk, pixels, warps, stages, split or precision, alone or after a pass", item);
    }
    if (which && kWholePlan[key]) read.fail("one " + std::string(kNames[key]) + " for all passes", item);
    if (asked[which][key] != kOpen) read.fail("each key once", item);
    asked[which][key] = read.value(static_cast<Key>(key), item.substr(equals + 1));
  }
  if (!plan.empty() && plan.back() == ',') read.fail("no comma at the end", plan);

  const ConvOptions plain;
  ConvOptions own;
  bool any_gather = false;
  for (int p = 0; p < 3; ++p) {  // all are checked at every pass
    const auto get = [&](Key key, int otherwise) {
      const int special = asked[p + 1][key], common = asked[0][key];
      return special != kOpen ? special : common != kOpen ? common : otherwise;
    };
    ConvOptions o;
    o.algo = static_cast<ConvAlgorithm>(get(kAlgo, static_cast<int>(plain.algo)));
    o.rows = get(kRows, plain.rows);
    o.chunk = get(kChunk, plain.chunk);
    o.pixels = get(kPixels, plain.pixels);
    o.warps = get(kWarps, plain.warps);
    o.stages = get(kStages, plain.stages);
    o.split = get(kSplit, plain.split);
    o.tf32 = get(kPrecision, kIeee) == kTf32;
    if (o.algo == ConvAlgorithm::gather) {
      any_gather = true;
      if (o.rows < 16) read.fail("rows=16 or rows=32 with algo=gather", "rows=" + std::to_string(o.rows));
    } else {
      if (o.pixels < 8) read.fail("pixels=8 or pixels=16 with algo=direct", "pixels=" + std::to_string(o.pixels));
      if (o.rows >= 16) o.rows = 1;
      o.tf32 = false;
    }
    if (static_cast<ConvPass>(p) == pass) own = o;
  }
  if (!any_gather && asked[0][kPrecision] == kTf32) read.fail("algo=gather with precision=tf32", plan);
  return own;
}

}  // namespace tost
