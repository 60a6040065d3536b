#include "hk2/linear.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>

#include "hk2/activations.h"

namespace hk2 {
namespace {

constexpr int64_t kFewTokens =
    8;  // up to here memory is the limit: one contiguous run of rows per worker
constexpr int64_t kMinRows = 32,
                  kMaxRows = 128;  // in a task: kernels for many tokens like long runs

// Rows [begin, end) of the stack, counted through all its matrices.
void multiply_rows(const KernelTable& kernels, const Matrix& matrix, const ActivationRow* x,
                   float* y, int64_t tokens, int64_t begin, int64_t end) {
  while (begin < end) {
    const int64_t s = begin / matrix.rows, first = begin % matrix.rows;
    Multiply product;
    product.weights = matrix.row(s, first);
    product.next = nullptr;  // rows of the next matrix follow directly
    product.row_bytes = matrix.row_bytes();
    product.rows = std::min(end - begin, matrix.rows - first);
    product.cols = matrix.cols;
    product.x = x + s * tokens;
    product.tokens = tokens;
    product.y = y + s * tokens * matrix.rows + first;
    product.y_stride = matrix.rows;
    kernels[*matrix.quant].multiply(product);
    begin += product.rows;
  }
}

}  // namespace

void linear(ThreadPool& pool, const KernelTable& kernels, const Matrix& matrix, const float* x,
            float* y, int64_t tokens) {
  if (tokens == 0) return;
  ThreadPool::Lease lease(pool);
  Activations activations(lease.arena(), matrix.stack * tokens, matrix.cols, reads_codes(matrix),
                          reads_values(matrix), x);
  TaskCounter counter;
  lease.run([&](int worker) {
    quantise_share(activations, kernels.activations(), x, worker, lease.workers());
    if (reads_codes(matrix)) lease.barrier();
    const int64_t rows = matrix.stack * matrix.rows;
    if (tokens <= kFewTokens) {
      const Share share(rows, worker, lease.workers());
      multiply_rows(kernels, matrix, activations.rows(), y, tokens, share.begin, share.end);
    } else {
      const int64_t size = task_size(rows, lease.workers(), kMinRows, kMaxRows);
      for (int64_t begin; (begin = counter.take() * size) < rows;)
        multiply_rows(kernels, matrix, activations.rows(), y, tokens, begin,
                      std::min(rows, begin + size));
    }
  });
}

double read_bandwidth(ThreadPool& pool, int64_t num_bytes, int64_t repeats) {
  constexpr int64_t kLine = 64;
  // Without software prefetch the hardware's prefetcher, not memory, is what is measured.
  constexpr int64_t kAheadWords = 4096 / sizeof(uint64_t);
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
    const auto start = std::chrono::steady_clock::now();
    lease.run([&](int worker) {
      const Share share(lines, worker, lease.workers());
      uint64_t sum[8] = {};
      const uint64_t* end = words + share.end * 8;
      for (const uint64_t* word = words + share.begin * 8; word < end; word += 8) {
        __builtin_prefetch(word + kAheadWords, 0, 3);
        for (int j = 0; j < 8; ++j) sum[j] += word[j];
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
