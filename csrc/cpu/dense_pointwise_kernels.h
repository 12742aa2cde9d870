// The dense 1x1 convolution as a matrix product; compiled once per instruction set by dense_pointwise.cpp (see per_isa.h).
//
// In batch-last memory a 1x1 convolution is result[O, P] = weight[O, I] x source[I, P] with the pixels times the batch in the
// contiguous dimension. All three directions run one micro-kernel: R rows x V vectors of the result in registers, and for each
// step in depth V loads of the second factor, packed in panels of kPanel columns, and R broadcasts of the first.

namespace tost::TOST_ISA {

// 24 accumulators, 4 loads and a broadcast fit the 32 registers of AVX-512; 12, 2 and 1 the 16 of the others.
constexpr int kRows = 6;
constexpr int kVectors = TOST_LANES == 16 ? 4 : 2;
constexpr int64_t kPanel = kVectors * kLanes;
constexpr int64_t kBlock = 256;     // columns packed at a time; a multiple of every kPanel
constexpr int64_t kDepth = 512;     // most steps in depth before partial sums go to memory
constexpr int64_t kFirstCache = 20 << 10;  // bytes of a panel that stay in L1 beside the weights

TOST_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
TOST_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Columns [column, column + length) of a block lie together, `offset` elements from the data.
struct Segment {
  int64_t offset, column, length;
};

// The columns [begin, begin + count) in at most kBlock segments, none across two panels.
template <class T>
static int64_t segments_of(const Columns<T>& columns, int64_t begin, int64_t count, Segment* segments) {
  int64_t found = 0;
  for (int64_t done = 0; done < count;) {
    const int64_t run = (begin + done) / columns.run, within = (begin + done) % columns.run;
    int64_t length = columns.run - within;
    if (length > kPanel - done % kPanel) length = kPanel - done % kPanel;
    if (length > count - done) length = count - done;
    const int64_t offset = run / columns.inner * columns.outer_step + run % columns.inner * columns.inner_step + within;
    segments[found++] = {offset, done, length};
    done += length;
  }
  return found;
}

template <class T>
TOST_INLINE void copy_floats(const T* from, float* to, int64_t count) {
  int64_t at = 0;
  for (; at + kLanes <= count; at += kLanes) store(to + at, load(from + at));
  for (; at < count; ++at) to[at] = to_float(from[at]);
}

template <class T>
TOST_INLINE void copy_floats_back(const float* from, T* to, int64_t count) {
  int64_t at = 0;
  for (; at + kLanes <= count; at += kLanes) store(to + at, load(from + at));
  for (; at < count; ++at) assign(to[at], from[at]);
}

// ---- the micro-kernel

constexpr int kSteps = 4;             // steps in depth for which one piece of kPanel floats is fetched
constexpr int64_t kMostFetches = 128;  // kDepth / kSteps

// to[r][v] = (from[r][v], or bias[r] where from is null) + sum over k of a[r * row_step + k * depth_step] * panel[k][v].
// Meanwhile `fetches` pieces of memory come into L2: many at once would block the loads of the sums.
struct MicroJob {
  const float* a;
  int64_t row_step, depth_step, depth;
  const float* panel;
  const float* from;
  int64_t from_pitch;
  const float* bias;
  float* to;
  int64_t to_pitch;
  const void* const* fetch;
  int64_t fetches;
};

TOST_INLINE void prefetch_piece(const void* at) {
#pragma GCC unroll 4
  for (int64_t byte = 0; byte < kPanel * 4; byte += 64) __builtin_prefetch(static_cast<const char*>(at) + byte, 0, 2);
}

template <int R, int V>
static __attribute__((noinline)) void micro(const MicroJob& job) {
  Vec acc[R][V];
  if (job.from != nullptr) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[r][v] = load(job.from + r * job.from_pitch + v * kLanes);
    }
  } else {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[r][v] = broadcast(job.bias[r]);
    }
  }
  const float* a[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) a[r] = job.a + r * job.row_step;
  const float* b = job.panel;
  const int64_t depth_step = job.depth_step, end = job.depth * depth_step;
  const void* const* fetch = job.fetch;
  const void* const* const last_fetch = fetch + job.fetches;
  for (int64_t k = 0; k < end;) {
    if (fetch != last_fetch) prefetch_piece(*fetch++);
    int64_t pause = k + kSteps * depth_step;
    if (pause > end || fetch == last_fetch) pause = end;
    for (; k < pause; k += depth_step, b += kPanel) {
      Vec x[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) x[v] = load(b + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vec weight = broadcast(a[r][k]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) acc[r][v] = fma(weight, x[v], acc[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(job.to + r * job.to_pitch + v * kLanes, acc[r][v]);
  }
}

template <int R>
static void run_micro_rows(const MicroJob& job, int64_t vectors) {
  if constexpr (kVectors == 4) {
    if (vectors == 4) return micro<R, 4>(job);
    if (vectors == 3) return micro<R, 3>(job);
  }
  return vectors == 2 ? micro<R, 2>(job) : micro<R, 1>(job);
}

static void run_micro(const MicroJob& job, int64_t rows, int64_t vectors) {
  switch (rows) {
    case 6: return run_micro_rows<6>(job, vectors);
    case 5: return run_micro_rows<5>(job, vectors);
    case 4: return run_micro_rows<4>(job, vectors);
    case 3: return run_micro_rows<3>(job, vectors);
    case 2: return run_micro_rows<2>(job, vectors);
    default: return run_micro_rows<1>(job, vectors);
  }
}

// ---- result = weight x source

// Where the columns of one block lie.
struct Block {
  int64_t begin, count, segments;
  Segment segment[kBlock];
};

template <class T>
static void find_block(const Columns<T>& columns, int64_t total, int64_t index, Block& block) {
  block.begin = index * kBlock;
  block.count = least(kBlock, total - block.begin);
  block.segments = segments_of(columns, block.begin, block.count, block.segment);
}

// Rows [k0, k0 + depth) of the block into panels, [panel][k][kPanel]; lanes beyond the last column are 0.
template <class T>
static void pack_panels(const Columns<const T>& source, const Block& block, int64_t k0, int64_t depth, float* panels) {
  const int64_t ragged = block.count % kLanes;
  for (int64_t k = 0; k < depth; ++k) {
    const T* row = source.data + (k0 + k) * source.stride_c;
    for (int64_t s = 0; s < block.segments; ++s) {
      const Segment& segment = block.segment[s];
      float* to = panels + (segment.column / kPanel * depth + k) * kPanel + segment.column % kPanel;
      if (segment.length == kPanel) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) store(to + v * kLanes, load(row + segment.offset + v * kLanes));
      } else {
        copy_floats(row + segment.offset, to, segment.length);
      }
    }
    if (ragged != 0) {
      float* panel = panels + ((block.count - 1) / kPanel * depth + k) * kPanel;
      for (int64_t lane = ragged; lane < kLanes; ++lane) panel[(block.count - 1) % kPanel / kLanes * kLanes + lane] = 0;
    }
  }
}

// Lines of rows [row, end) of a block that will be read next, fetched a few at a time between micro-kernels: rows lie so far
// apart that no hardware prefetcher follows.
template <class T>
struct Ahead {
  const Columns<const T>* source;
  const Block* block;
  int64_t row, end, segment;
  int64_t pieces;  // a call
};

template <class T>
static Ahead<T> look_ahead(const Columns<const T>& source, const Block& block, int64_t row, int64_t end, int64_t calls) {
  return {&source, &block, row, end, 0, ceil_div((end - row) * block.segments, calls)};
}

// What one micro-kernel of `depth` steps is to fetch.
struct Fetches {
  const void* piece[kMostFetches];
  int64_t count, most;
};

TOST_INLINE void start(Fetches& fetches, int64_t depth) {
  fetches.count = 0;
  fetches.most = least(depth / kSteps, kMostFetches);
}

template <class T>
TOST_INLINE void add(Fetches& fetches, Ahead<T>& ahead) {
  for (int64_t n = 0; n < ahead.pieces && fetches.count < fetches.most && ahead.row < ahead.end; ++n) {
    fetches.piece[fetches.count++] =
        ahead.source->data + ahead.row * ahead.source->stride_c + ahead.block->segment[ahead.segment].offset;
    if (++ahead.segment == ahead.block->segments) ahead.segment = 0, ++ahead.row;
  }
}

// A tile of results that do not lie together, or are not float, to where they belong.
template <class T>
static void write_rows(
    const Columns<T>& result, const Segment* segments, int64_t count, int64_t row, int64_t rows, const float* tile) {
  for (int64_t r = 0; r < rows; ++r) {
    T* to = result.data + (row + r) * result.stride_c;
    for (int64_t s = 0; s < count; ++s) {
      const Segment& segment = segments[s];
      copy_floats_back(tile + r * kPanel + segment.column % kPanel, to + segment.offset, segment.length);
    }
  }
}

TOST_INLINE float* result_address(const Columns<float>& result, int64_t row, int64_t offset) {
  return result.data + row * result.stride_c + offset;
}
TOST_INLINE float* result_address(const Columns<bf16>&, int64_t, int64_t) { return nullptr; }

template <class T>
static void pointwise(const PointwiseJob<T>& job, int64_t begin, int64_t end) {
  const int64_t row_blocks = ceil_div(job.rows, kRows), depth_blocks = ceil_div(job.depth, kDepth);
  const int64_t most_rows = ceil_div(row_blocks, job.row_chunks) * kRows;
  const int64_t packed = kBlock * least(job.depth, kDepth);
  float* panels = thread_scratch(packed + kRows * kPanel + (depth_blocks > 1 ? most_rows * kBlock : 0));
  float* tile = panels + packed;
  float* partial = tile + kRows * kPanel;  // [row][kBlock]
  const float no_bias[kRows] = {};
  Block source_blocks[2], result_block;
  Fetches fetches;
  if (begin < end) find_block(job.source, job.columns, begin / job.row_chunks, source_blocks[0]);
  for (int64_t task = begin; task < end; ++task) {
    const Block& block = source_blocks[(task - begin) % 2];
    Block& next = source_blocks[(task - begin + 1) % 2];
    if (task + 1 < end) find_block(job.source, job.columns, (task + 1) / job.row_chunks, next);
    find_block(job.result, job.columns, task / job.row_chunks, result_block);
    const int64_t chunk = task % job.row_chunks;
    const int64_t first_row = row_blocks * chunk / job.row_chunks * kRows;
    const int64_t blocks = row_blocks * (chunk + 1) / job.row_chunks - row_blocks * chunk / job.row_chunks;
    const int64_t panel_count = ceil_div(block.count, kPanel);
    for (int64_t d = 0; d < depth_blocks; ++d) {
      const int64_t k0 = d * kDepth, depth = least(kDepth, job.depth - k0);
      pack_panels(job.source, block, k0, depth, panels);
      const int64_t calls = panel_count * blocks;
      Ahead<T> ahead{};
      if (d + 1 < depth_blocks) {
        ahead = look_ahead(job.source, block, k0 + kDepth, least(k0 + 2 * kDepth, job.depth), calls);
      } else if (task + 1 < end) {
        ahead = look_ahead(job.source, next, 0, least(kDepth, job.depth), calls);
      }
      // The inner loop goes over what does not fit L1 if the panel does, else over the panels for one block of rows.
      const bool panel_stays = depth * kPanel * static_cast<int64_t>(sizeof(float)) <= kFirstCache;
      int64_t segment = 0, last_panel = -1, panel_segments = 0;
      for (int64_t call = 0; call < calls; ++call) {
        const int64_t panel = panel_stays ? call / blocks : call % panel_count;
        const int64_t row = first_row + (panel_stays ? call % blocks : call / panel_count) * kRows;
        const int64_t rows = least(kRows, job.rows - row);
        const int64_t columns = least(kPanel, block.count - panel * kPanel);
        const int64_t vectors = ceil_div(columns, kLanes);
        if (panel != last_panel) {
          if (panel < last_panel) segment = 0, panel_segments = 0;
          for (segment += panel_segments, panel_segments = 0; segment + panel_segments < result_block.segments; ++panel_segments) {
            if (result_block.segment[segment + panel_segments].column >= (panel + 1) * kPanel) break;
          }
          last_panel = panel;
        }
        const Segment* to = result_block.segment + segment;
        const bool last = d + 1 == depth_blocks;
        const bool direct = sizeof(T) == sizeof(float) && panel_segments == 1 && columns == vectors * kLanes;
        start(fetches, depth);
        float* sums = partial + (row - first_row) * kBlock + panel * kPanel;
        MicroJob micro_job{
            job.weight + row * job.depth + k0 * job.depth_step, job.row_step, job.depth_step, depth,
            panels + panel * depth * kPanel, d == 0 ? nullptr : sums, kBlock,
            job.bias == nullptr ? no_bias : job.bias + row, tile, kPanel, fetches.piece, 0};
        if (!last) {
          micro_job.to = sums, micro_job.to_pitch = kBlock;
        } else if (direct) {
          micro_job.to = result_address(job.result, row, to->offset), micro_job.to_pitch = job.result.stride_c;
          // Stores that miss would wait one for another.
          for (int64_t r = 0; r < rows && fetches.count < fetches.most; ++r) {
            fetches.piece[fetches.count++] = micro_job.to + r * micro_job.to_pitch;
          }
        }
        add(fetches, ahead);
        micro_job.fetches = fetches.count;
        run_micro(micro_job, rows, vectors);
        if (last && !direct) write_rows(job.result, to, panel_segments, row, rows, tile);
      }
    }
  }
}

// ---- grad_weight = grad x source^T

// Rows and lanes that differ in bit D change places. A template, since the shuffles must be constants.
template <int D>
TOST_INLINE void transpose_step(Vec* v) {
  IVec low, high;
#pragma GCC unroll 16
  for (int l = 0; l < kLanes; ++l) {
    low[l] = (l & D) ? l - D + kLanes : l;
    high[l] = (l & D) ? l + kLanes : l + D;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; ++r) {
    if (r & D) continue;
    const Vec a = v[r], b = v[r + D];
    v[r] = shuffle(a, b, low);
    v[r + D] = shuffle(a, b, high);
  }
}

// to[c * to_pitch + r] = from[r][c] for a square of kLanes rows and columns.
TOST_INLINE void transpose_square(const float* const* from, float* to, int64_t to_pitch) {
  Vec v[kLanes];
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; ++r) v[r] = load(from[r]);
#if TOST_LANES >= 16
  transpose_step<8>(v);
#endif
#if TOST_LANES >= 8
  transpose_step<4>(v);
#endif
  transpose_step<2>(v);
  transpose_step<1>(v);
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; ++r) store(to + r * to_pitch, v[r]);
}

// `rows` rows of the block from `row` on, as floats, kBlock apart.
template <class T>
static void copy_rows(
    const Columns<const T>& source, const Block& block, int64_t row, int64_t rows, float* to) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* from = source.data + (row + r) * source.stride_c;
    for (int64_t s = 0; s < block.segments; ++s) {
      copy_floats(from + block.segment[s].offset, to + r * kBlock + block.segment[s].column, block.segment[s].length);
    }
  }
}

TOST_INLINE bool whole_vectors(const Block& block) {
  for (int64_t s = 0; s < block.segments; ++s) {
    if (block.segment[s].length % kLanes != 0) return false;
  }
  return true;
}

// Inputs [first, first + inputs) of the block as a panel, [column][kPanel]. What belongs to no input or column holds copies or
// numbers of no meaning; nobody reads their sums. `rows`: scratch of kLanes x kBlock.
template <class T>
static void transpose_panel(
    const Columns<const T>& source, const Block& block, int64_t first, int64_t inputs, float* rows, float* panel) {
  const float* from[kLanes];
  for (int64_t group = 0; group < inputs; group += kLanes) {
    const int64_t present = least(kLanes, inputs - group);
    if constexpr (sizeof(T) == sizeof(float)) {
      if (whole_vectors(block)) {
        for (int64_t s = 0; s < block.segments; ++s) {
          const Segment& segment = block.segment[s];
          const float* start = source.data + (first + group) * source.stride_c + segment.offset;
          for (int64_t c = 0; c < segment.length; c += kLanes) {
            for (int64_t r = 0; r < kLanes; ++r) from[r] = start + (r < present ? r : 0) * source.stride_c + c;
            transpose_square(from, panel + (segment.column + c) * kPanel + group, kPanel);
          }
        }
        continue;
      }
    }
    copy_rows(source, block, first + group, present, rows);
    for (int64_t c = 0; c < block.count; c += kLanes) {
      for (int64_t r = 0; r < kLanes; ++r) from[r] = rows + (r < present ? r : 0) * kBlock + c;
      transpose_square(from, panel + c * kPanel + group, kPanel);
    }
  }
}

template <class T>
static void pointwise_values(const PointwiseValuesJob<T>& job, int64_t begin, int64_t end) {
  const int64_t row_blocks = ceil_div(job.rows, kRows), blocks = ceil_div(job.columns, kBlock);
  const int64_t most_rows = ceil_div(row_blocks, job.segments) * kRows;
  float* grads = thread_scratch((most_rows + kLanes + kPanel) * kBlock);  // [row][kBlock]
  float* rows = grads + most_rows * kBlock;
  float* panel = rows + kLanes * kBlock;
  // Columns of the last, ragged vector that do not exist are transposed too.
  for (int64_t at = 0; at < kLanes * kBlock; ++at) rows[at] = 0;
  const float no_bias[kRows] = {};
  Block grad_blocks[2], source_blocks[2];
  Fetches fetches;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t chunk = item / job.segments, segment = item % job.segments;
    const int64_t first_row = row_blocks * segment / job.segments * kRows;
    const int64_t end_row = least(row_blocks * (segment + 1) / job.segments * kRows, job.rows);
    const int64_t first_block = blocks * chunk / job.chunks, end_block = blocks * (chunk + 1) / job.chunks;
    const int64_t calls = ceil_div(end_row - first_row, kRows) * ceil_div(job.inputs, kPanel);
    float* sums = job.partial + chunk * job.rows * job.pitch;
    find_block(job.grad, job.columns, first_block, grad_blocks[0]);
    find_block(job.source, job.columns, first_block, source_blocks[0]);
    for (int64_t b = first_block; b < end_block; ++b) {
      const int64_t now = (b - first_block) % 2, next = 1 - now;
      Ahead<T> grad_ahead{}, source_ahead{};
      if (b + 1 < end_block) {
        find_block(job.grad, job.columns, b + 1, grad_blocks[next]);
        find_block(job.source, job.columns, b + 1, source_blocks[next]);
        grad_ahead = look_ahead(job.grad, grad_blocks[next], first_row, end_row, calls);
        source_ahead = look_ahead(job.source, source_blocks[next], 0, job.inputs, calls);
      }
      copy_rows(job.grad, grad_blocks[now], first_row, end_row - first_row, grads);
      for (int64_t input = 0; input < job.inputs; input += kPanel) {
        const int64_t inputs = least(kPanel, job.inputs - input);
        transpose_panel(job.source, source_blocks[now], input, inputs, rows, panel);
        for (int64_t row = first_row; row < end_row; row += kRows) {
          start(fetches, grad_blocks[now].count);
          add(fetches, grad_ahead);
          add(fetches, source_ahead);
          float* to = sums + row * job.pitch + input;
          const MicroJob micro_job{
              grads + (row - first_row) * kBlock, kBlock, 1, grad_blocks[now].count, panel, b == first_block ? nullptr : to,
              job.pitch, no_bias, to, job.pitch, fetches.piece, fetches.count};
          run_micro(micro_job, least(kRows, end_row - row), ceil_div(inputs, kLanes));
        }
      }
    }
  }
}

}  // namespace tost::TOST_ISA
