#include "conv_engine.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <numeric>
#include <type_traits>

#include <torch/csrc/stable/ops.h>

#include "conv_job.h"
#include "lattice.h"
#include "scratch.h"
#include "share_out.h"
#include "stream_cache.h"

#define TOST_KERNELS "conv_kernels.h"
#define TOST_WITH_BF16_DOTS
#include "per_isa.h"

namespace tost {

namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// float32 has no use for what avx512bf16 adds.
template <class T>
Isa isa_for() {
  return std::is_same_v<T, bf16> ? isa() : std::min(isa(), Isa::avx512);
}

template <class T>
auto gather_kernel() {
  if constexpr (std::is_same_v<T, bf16>) return TOST_PER_ISA_BF16(gather<T>);
  else return TOST_PER_ISA(gather<T>);
}

template <class T>
auto values_grad_kernel() {
  if constexpr (std::is_same_v<T, bf16>) return TOST_PER_ISA_BF16(values_grad<T>);
  else return TOST_PER_ISA(values_grad<T>);
}

AxisView without_vectors(const Axis& axis) {
  return {axis.out_step, axis.out_phase, axis.count, axis.src_step, axis.src_size,
          axis.tiles,    axis.planes,    axis.extent, axis.start.data()};
}

// A ConvJob and what its pointers point to.
struct PreparedConv {
  std::vector<Axis> y_axes, x_axes;
  std::vector<Phase> phases;
  std::shared_ptr<const Stream> stream;
  ConvJob job{};
};

// Sizes of a convolution, seen from its result. transposed: an input gradient.
struct ConvShape {
  int64_t batch, groups, rows, channels;  // rows, channels: a group
  bool transposed;
};

template <class T>
void prepare(
    const char* op, PreparedConv& prepared, const ConvShape& shape, const IndexView& view, const PackedIndex& index,
    Numbers<T> values, const Tile& tile, const ConvOptions& options) {
  const int64_t lane_count = lanes(isa());
  const int64_t vector_floats = tile.batches * lane_count;
  const int64_t y_phases = static_cast<int64_t>(prepared.y_axes.size()), x_phases = static_cast<int64_t>(prepared.x_axes.size());
  const int64_t all_phases = y_phases * x_phases, taps = index.taps();

  // A tap that no phase lists counts to the last phase: conv_input_grad leaves out only phases without pixels and then makes
  // the last one empty too.
  std::vector<int64_t> phase_of_tap(taps, all_phases - 1), offset_of_tap(taps, 0), class_of_tap(taps, 0);
  std::vector<int64_t> channel_pitch(all_phases);
  const int64_t y_classes = prepared.y_axes[0].classes, x_classes = prepared.x_axes[0].classes;
  int64_t largest_channel = 0;
  for (int64_t py = 0; py < y_phases; ++py) {
    for (int64_t px = 0; px < x_phases; ++px) {
      const Axis& y = prepared.y_axes[py];
      const Axis& x = prepared.x_axes[px];
      const int64_t phase = py * x_phases + px;
      const int64_t row_pitch = x.extent * vector_floats;
      const double floats = static_cast<double>(y.planes) * static_cast<double>(x.planes) *
                            static_cast<double>(y.extent) * static_cast<double>(row_pitch);
      TOST_CHECK(
          floats < static_cast<double>(std::numeric_limits<int32_t>::max()), op, "the kernel of ", index.kh, "x", index.kw,
          " is too large: one channel of a tile would take ", floats, " numbers");
      channel_pitch[phase] = y.planes * x.planes * y.extent * row_pitch;
      largest_channel = std::max(largest_channel, channel_pitch[phase]);
      for (int64_t ky = 0; ky < index.kh; ++ky) {
        for (int64_t kx = 0; kx < index.kw; ++kx) {
          if (y.tap_plane[ky] < 0 || x.tap_plane[kx] < 0) continue;
          phase_of_tap[ky * index.kw + kx] = phase;
          offset_of_tap[ky * index.kw + kx] =
              ((y.tap_plane[ky] * x.planes + x.tap_plane[kx]) * y.extent + y.tap_offset[ky]) * row_pitch +
              x.tap_offset[kx] * vector_floats;
          class_of_tap[ky * index.kw + kx] = y.tap_class[ky] * x_classes + x.tap_class[kx];
        }
      }
    }
  }

  ConvJob& job = prepared.job;
  job.tile = tile;
  job.y_classes = y_classes;
  job.x_classes = x_classes;
  const int64_t classes = y_classes * x_classes;
  job.batch_blocks = ceil_div(shape.batch, vector_floats);
  job.row_chunks = 1;
  job.groups = shape.groups;
  job.rows = shape.rows;
  job.channels = shape.channels;
  const double weights = static_cast<double>(index.nnz) / static_cast<double>(index.outputs * index.inputs * all_phases);
  const bool gathers = values.data != nullptr;
  job.block = choose_block(options, isa_for<T>(), gathers, shape.channels, largest_channel, index.block, weights, classes);
  // Offsets in a packed block are 32 bits.
  job.block = std::max<int64_t>(
      1, std::min(job.block, std::numeric_limits<int32_t>::max() / std::max<int64_t>(1, largest_channel)));
  job.blocks = ceil_div(shape.channels, job.block);
  job.tile_numbers = job.block * largest_channel;

  prepared.stream = stream_for(
      op, index, view,
      {shape.groups, shape.rows, shape.channels, job.block, job.blocks, classes, !shape.transposed, all_phases,
       std::move(offset_of_tap), std::move(phase_of_tap), std::move(class_of_tap), channel_pitch});
  job.offsets = prepared.stream->offset.data();
  if (values.data != nullptr) {
    // Kept from call to call: fresh memory of this size costs a page fault every 4 KB.
    static thread_local std::vector<Nonzero> nonzeros;
    with_weights(*prepared.stream, values.data, values.stride, nonzeros);
    job.nonzeros = nonzeros.data();
  }

  int64_t y_tiles = 0, x_tiles = 0;
  for (int64_t py = 0; py < y_phases; ++py) {
    for (int64_t px = 0; px < x_phases; ++px) {
      const Axis& y = prepared.y_axes[py];
      const Axis& x = prepared.x_axes[px];
      if (y.count <= 0 || x.count <= 0) continue;
      const int64_t phase = py * x_phases + px;
      prepared.phases.push_back(
          {without_vectors(y), without_vectors(x), x.extent * vector_floats, channel_pitch[phase],
           prepared.stream->phase_ptr(phase, shape.groups * job.blocks * shape.rows * classes)});
      y_tiles = std::max(y_tiles, y.tiles);
      x_tiles = std::max(x_tiles, x.tiles);
    }
  }
  job.phases = prepared.phases.data();
  job.phase_count = static_cast<int64_t>(prepared.phases.size());
  job.x_tiles = x_tiles;
  job.tasks = y_tiles * x_tiles * job.batch_blocks * job.phase_count;
}

// Rows of one image and batch block may go to several threads: a row's sum does not depend on it. Worth it when there
// are few tasks, and needed when the partial sums of all rows would not stay in the second cache.
void split_rows(ConvJob& job) {
  constexpr int64_t kTasksPerThread = 4, kFewestRows = 16, kMostRows = 512;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t rows = job.groups * job.rows;
  int64_t chunks = 1;
  if (threads > 1 && job.tasks < threads * kTasksPerThread) {
    chunks = std::min(ceil_div(threads * kTasksPerThread, std::max<int64_t>(1, job.tasks)), rows / kFewestRows);
  }
  if (job.blocks > 1) chunks = std::max(chunks, ceil_div(job.rows, kMostRows) * job.groups);
  chunks = std::max<int64_t>(1, std::min(chunks, rows));
  job.row_chunks = chunks;
  job.tasks *= chunks;
}

template <class T>
void run_gather(PreparedConv& prepared, View<const T> source, Numbers<T> bias, View<T> result) {
  split_rows(prepared.job);
  const bool streaming = past_the_caches(result.n * result.c * result.h * result.w * static_cast<int64_t>(sizeof(T)));
  const GatherJob<T> job{prepared.job, source, result, bias.data, bias.stride, streaming};
  const auto kernel = gather_kernel<T>();
  share_out(job.conv.tasks, [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
}

// source: how many pixels the source has. padding: -1 where a phase has another.
AxisNeed need_of(
    int64_t count, int64_t taps, int64_t planes, int64_t dilation, int64_t src_step, int64_t source, int64_t padding) {
  const bool near = planes == 1 && count == source && taps == 3 && dilation == 1 && padding == 1;
  return {count, std::min(taps, planes), (taps - 1) * dilation / src_step, near};
}

template <class T>
void set_axes(PreparedConv& prepared, const TileNeed& need, const Tile& tile, std::vector<Axis> y, std::vector<Axis> x) {
  const Known known = shifts_known(tile, need, isa_for<T>());
  if (known.y) class_by_shift(y[0]);
  if (known.x) class_by_shift(x[0]);
  prepared.y_axes = std::move(y);
  prepared.x_axes = std::move(x);
}

}  // namespace

template <class T>
void conv_forward(
    const char* op, View<const T> input, Numbers<T> values, Numbers<T> bias, const PackedIndex& index,
    const ConvGeometry& geometry, const ConvOptions& options, View<T> output) {
  const auto& [stride, padding, dilation, groups] = geometry;
  const TileNeed need{
      need_of(output.h, index.kh, stride[0], dilation[0], stride[0], input.h, padding[0]),
      need_of(output.w, index.kw, stride[1], dilation[1], stride[1], input.w, padding[1]), input.n,
      static_cast<double>(index.nnz) / static_cast<double>(index.inputs * groups)};
  const Tile tile = choose_tile(op, options, need, isa_for<T>());  // first, since it checks the plan
  if (output.n * output.c * output.h * output.w == 0) return;
  PreparedConv prepared;
  set_axes<T>(
      prepared, need, tile, {forward_axis(output.h, input.h, index.kh, stride[0], padding[0], dilation[0], tile.rows)},
      {forward_axis(output.w, input.w, index.kw, stride[1], padding[1], dilation[1], tile.columns)});
  const ConvShape shape{input.n, groups, index.outputs / groups, index.inputs, false};
  prepare<T>(op, prepared, shape, index.forward, index, values, tile, options);
  run_gather<T>(prepared, input, bias, output);
}

template <class T>
void conv_input_grad(
    const char* op, View<const T> grad_output, Numbers<T> values, const PackedIndex& index, const ConvGeometry& geometry,
    const ConvOptions& options, View<T> grad_input) {
  const auto& [stride, padding, dilation, groups] = geometry;
  const auto taps_a_phase = [](int64_t taps, int64_t step) { return ceil_div(taps, step); };
  const TileNeed need{
      need_of(
          ceil_div(grad_input.h, stride[0]), taps_a_phase(index.kh, stride[0]), 1, dilation[0], 1, grad_output.h,
          stride[0] == 1 ? padding[0] : -1),
      need_of(
          ceil_div(grad_input.w, stride[1]), taps_a_phase(index.kw, stride[1]), 1, dilation[1], 1, grad_output.w,
          stride[1] == 1 ? padding[1] : -1),
      grad_output.n,
      static_cast<double>(index.nnz) / static_cast<double>(index.outputs * stride[0] * stride[1])};
  const Tile tile = choose_tile(op, options, need, isa_for<T>());
  if (grad_input.n * grad_input.c * grad_input.h * grad_input.w == 0) return;
  PreparedConv prepared;
  std::vector<Axis> y_axes, x_axes;
  // Phases from the size on have no pixels. One of them stands for all, so that a stride far beyond the input does not
  // make stride * stride phases.
  for (int64_t phase = 0; phase < std::min(stride[0], grad_input.h + 1); ++phase) {
    y_axes.push_back(
        input_grad_axis(grad_input.h, grad_output.h, index.kh, stride[0], padding[0], dilation[0], tile.rows, phase));
  }
  for (int64_t phase = 0; phase < std::min(stride[1], grad_input.w + 1); ++phase) {
    x_axes.push_back(
        input_grad_axis(grad_input.w, grad_output.w, index.kw, stride[1], padding[1], dilation[1], tile.columns, phase));
  }
  set_axes<T>(prepared, need, tile, std::move(y_axes), std::move(x_axes));
  const ConvShape shape{grad_output.n, groups, index.inputs, index.outputs / groups, true};
  prepare<T>(op, prepared, shape, index.transposed, index, values, tile, options);
  run_gather<T>(prepared, grad_output, Numbers<T>{}, grad_input);
}

template <class T>
void conv_values_grad(
    const char* op, View<const T> grad_output, View<const T> input, const PackedIndex& index, const ConvGeometry& geometry,
    const ConvOptions& options, T* grad_values) {
  const auto& [stride, padding, dilation, groups] = geometry;
  const TileNeed need{
      need_of(grad_output.h, index.kh, stride[0], dilation[0], stride[0], input.h, padding[0]),
      need_of(grad_output.w, index.kw, stride[1], dilation[1], stride[1], input.w, padding[1]), input.n,
      static_cast<double>(index.nnz) / static_cast<double>(index.inputs * groups)};
  const Tile tile = choose_tile(op, options, need, isa_for<T>());
  if (index.nnz == 0) return;
  PreparedConv prepared;
  set_axes<T>(
      prepared, need, tile, {forward_axis(grad_output.h, input.h, index.kh, stride[0], padding[0], dilation[0], tile.rows)},
      {forward_axis(grad_output.w, input.w, index.kw, stride[1], padding[1], dilation[1], tile.columns)});
  const ConvShape shape{input.n, groups, index.outputs / groups, index.inputs, false};
  prepare<T>(op, prepared, shape, index.forward, index, Numbers<T>{}, tile, options);

  // The number of chunks fixes the order of the sum: it follows from shape and pattern alone.
  constexpr int64_t kMostChunks = 16, kMostPartial = int64_t{8} << 20;
  const int64_t tasks = prepared.job.tasks;
  if (tasks == 0) {  // an empty batch
    for (int64_t k = 0; k < index.nnz; ++k) assign(grad_values[k], 0.0f);
    return;
  }
  const int64_t chunks = std::max<int64_t>(1, std::min({tasks, kMostChunks, kMostPartial / index.nnz}));
  constexpr int64_t kFewestRows = 16, kMostRows = 1024;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t rows = index.outputs;
  int64_t segments = ceil_div(rows, kMostRows);
  if (threads > 1) segments = std::max(segments, std::min(ceil_div(threads, chunks), rows / kFewestRows));
  static thread_local std::vector<float> kept;  // from call to call, as the stream is
  kept.resize(chunks * index.nnz);
  std::vector<float>& partial = kept;  // a lambda sees its own thread's `kept`
  const ValuesGradJob<T> job{prepared.job, input, grad_output, chunks, segments, index.nnz, partial.data()};
  const auto kernel = values_grad_kernel<T>();
  share_out(chunks * segments, [&](int64_t begin, int64_t end) { kernel(job, begin, end); });

  torch::stable::parallel_for(0, index.nnz, 16384, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      float total = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) total += partial[chunk * index.nnz + k];
      assign(grad_values[prepared.stream->position[k]], total);
    }
  });
}

#define TOST_INSTANTIATE(T)                                                                                             \
  template void conv_forward<T>(                                                                                        \
      const char*, View<const T>, Numbers<T>, Numbers<T>, const PackedIndex&, const ConvGeometry&, const ConvOptions&,  \
      View<T>);                                                                                                         \
  template void conv_input_grad<T>(                                                                                     \
      const char*, View<const T>, Numbers<T>, const PackedIndex&, const ConvGeometry&, const ConvOptions&, View<T>);    \
  template void conv_values_grad<T>(                                                                                    \
      const char*, View<const T>, View<const T>, const PackedIndex&, const ConvGeometry&, const ConvOptions&, T*);
TOST_INSTANTIATE(float)
TOST_INSTANTIATE(bf16)
#undef TOST_INSTANTIATE

}  // namespace tost
