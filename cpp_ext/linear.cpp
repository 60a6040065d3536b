#include "hk2/linear.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>

#include "hk2/activations.h"
#include "hk2/tile_product.h"

namespace hk2 {
namespace {

// Rows in a task: kernels for many tokens like long runs, few tokens an even share of few rows.
constexpr int64_t kFewestRows = 8, kMinRows = 32, kMaxRows = 128;

// Share of a block's sum of squares from which its largest element is an outlier.
constexpr float kOutlierShare = 0.5f;

// y[t][row] += the products of what rounding left of tokens with outliers.
void add_residuals(const KernelTable& kernels, const Matrix& matrix, const Activations& x,
                   int64_t first_row, int64_t tokens, Multiply product, float* y) {
  float part[kMaxRows];
  product.y = part;
  product.tokens = 1;
  for (int64_t t = 0; t < tokens; ++t) {
    product.x = x.residual(first_row + t);
    if (!product.x) continue;
    kernels[*matrix.quant].multiply(product);
    for (int64_t r = 0; r < product.rows; ++r) y[t * product.y_stride + r] += part[r];
  }
}

// Rows [begin, end) of the stack, counted through all its matrices.
void multiply_rows(const KernelTable& kernels, const Matrix& matrix, const Activations& x, float* y,
                   int64_t tokens, int64_t begin, int64_t end) {
  while (begin < end) {
    const int64_t s = begin / matrix.rows, first = begin % matrix.rows;
    Multiply product;
    product.weights = matrix.row(s, first);
    product.next = nullptr;  // rows of the next matrix follow directly
    product.row_bytes = matrix.row_bytes();
    // Few rows at a time: they are still cached when residuals meet them.
    product.rows = std::min({end - begin, matrix.rows - first, kMaxRows});
    product.cols = matrix.cols;
    product.x = x.rows() + s * tokens;
    product.tokens = tokens;
    product.y = y + s * tokens * matrix.rows + first;
    product.y_stride = matrix.rows;
    kernels[*matrix.quant].multiply(product);
    add_residuals(kernels, matrix, x, s * tokens, tokens, product, product.y);
    begin += product.rows;
  }
}

// Many tokens, through tiles: all are packed once, then runs of rows meet them.
void linear_tiled(ThreadPool::Lease& lease, const KernelTable& kernels, const Matrix& matrix,
                  const float* x, float* y, int64_t tokens) {
  const int64_t total = num_panels(tokens), size = panel_size(matrix.cols);
  const int64_t rows = task_size(matrix.stack * matrix.rows, lease.workers(), kMinRows, kMaxRows);
  const int64_t tasks = (matrix.rows + rows - 1) / rows;  // per matrix
  constexpr int64_t kTile = kPanelTokens * 16, kSums = kMaxPanels * kPanelTokens * kMaxRows;
  uint16_t* panels = lease.arena().take<uint16_t>(matrix.stack * total * size);
  float* sums = lease.arena().take<float>(lease.workers() * kSums);
  uint16_t* decoded = lease.arena().take<uint16_t>(lease.workers() * 2 * kDecodeSize);
  const TileKernel& tiles = *kernels.tiles();
  TaskCounter counter;
  lease.run([&](int worker) {
    tiles.open();
    const Share share(matrix.stack * total, worker, lease.workers());
    for (int64_t i = share.begin; i < share.end; ++i) {
      const int64_t first = i % total * kPanelTokens;
      const int64_t count = std::min<int64_t>(kPanelTokens, tokens - first);
      const float* token[kPanelTokens];
      for (int64_t t = 0; t < count; ++t)
        token[t] = x + (i / total * tokens + first + t) * matrix.cols;
      tiles.pack(token, count, matrix.cols, panels + i * size);
    }
    lease.barrier();
    DecodedBlocks blocks(decoded + worker * 2 * kDecodeSize);
    for (int64_t task; (task = counter.take()) < matrix.stack * tasks;) {
      const int64_t s = task / tasks, first = task % tasks * rows;
      PanelProduct product;
      product.weights = matrix.row(s, first);
      product.next = nullptr;
      product.rows = std::min(rows, matrix.rows - first);
      product.sums = sums + worker * kSums;
      for (int64_t p = 0; p < total; p += kMaxPanels) {
        product.num_panels = std::min(kMaxPanels, total - p);
        product.panels = panels + (s * total + p) * size;
        multiply_panels(kernels, matrix, product, blocks);
        for (int64_t i = 0; i < product.num_panels; ++i) {
          const int64_t token = (p + i) * kPanelTokens;
          const int64_t count = std::min<int64_t>(kPanelTokens, tokens - token);
          float ones[kPanelTokens], *out[kPanelTokens];
          for (int64_t t = 0; t < count; ++t) {
            ones[t] = 1;
            out[t] = y + (s * tokens + token + t) * matrix.rows + first;
            std::fill_n(out[t], product.rows, 0.0f);
          }
          tiles.add(product.sums + i * kTile, product.num_panels * kTile, product.rows, count, ones,
                    out);
        }
      }
    }
    tiles.close();
  });
}

}  // namespace

void linear(ThreadPool& pool, const KernelTable& kernels, const Matrix& matrix, const float* x,
            float* y, int64_t tokens) {
  if (tokens == 0) return;
  ThreadPool::Lease lease(pool);
  lease.counters().weight_bytes += static_cast<uint64_t>(matrix.stack) * matrix.bytes();
  if (uses_tiles(kernels, matrix, tokens))
    return linear_tiled(lease, kernels, matrix, x, y, tokens);
  Activations activations(lease.arena(), matrix.stack * tokens, matrix.cols, reads_codes(matrix),
                          reads_values(matrix), x, kOutlierShare);
  TaskCounter counter;
  lease.run([&](int worker) {
    quantise_share(activations, kernels.activations(), x, nullptr, activations.count(), worker,
                   lease.workers());
    if (reads_codes(matrix)) lease.barrier();
    // Shared out one by one, as the experts are: a fixed split waits for the slowest core.
    const int64_t rows = matrix.stack * matrix.rows;
    const int64_t smallest = tokens <= kSameBits ? kFewestRows : kMinRows;
    const int64_t size = task_size(rows, lease.workers(), smallest, kMaxRows);
    for (int64_t begin; (begin = counter.take() * size) < rows;)
      multiply_rows(kernels, matrix, activations, y, tokens, begin, std::min(rows, begin + size));
  });
}

double read_bandwidth(ThreadPool& pool, int64_t num_bytes, int64_t repeats) {
  constexpr int64_t kLine = 64;
  // Without software prefetch the hardware's prefetcher, not memory, is what is measured.
  constexpr int64_t kAheadWords = 4096 / sizeof(uint64_t);
  // Shared out in chunks: cores differ, and a fixed split would measure the slowest.
  constexpr int64_t kChunkLines = (512 << 10) / kLine;
  const int64_t lines = num_bytes / kLine;
  const size_t size = static_cast<size_t>(lines * kLine);
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  madvise(memory, size, MADV_HUGEPAGE);
#endif
  uint64_t* words = static_cast<uint64_t*>(memory);
  ThreadPool::Lease lease(pool);
  lease.run([&](int worker) {
    const Share share(lines, worker, lease.workers());
    std::memset(words + share.begin * 8, 1, static_cast<size_t>((share.end - share.begin) * kLine));
  });
  double best = 0;
  std::atomic<uint64_t> sink{0};  // keeps the reads alive
  for (int64_t i = 0; i < repeats; ++i) {
    TaskCounter counter;
    const auto start = std::chrono::steady_clock::now();
    lease.run([&](int) {
      uint64_t sum[8] = {};
      for (int64_t begin; (begin = counter.take() * kChunkLines) < lines;) {
        const uint64_t* end = words + std::min(lines, begin + kChunkLines) * 8;
        for (const uint64_t* word = words + begin * 8; word < end; word += 8) {
          __builtin_prefetch(word + kAheadWords, 0, 3);
          for (int j = 0; j < 8; ++j) sum[j] += word[j];
        }
      }
      uint64_t total = 0;
      for (uint64_t part : sum) total += part;
      sink += total;
    });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(size) / seconds.count() / 1e9);
  }
  munmap(memory, size);
  return best;
}

}  // namespace hk2
