#include "hk2/activations.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "hk2/thread_pool.h"

namespace hk2 {

Activations::Activations(Arena& arena, int64_t count, int64_t cols, bool reads_codes,
                         bool keep_values, const float* values, float outlier_share)
    : count_(count),
      cols_(cols),
      blocks_(reads_codes ? cols / kActivationBlock : 0),
      padded_blocks_((blocks_ * kActivationBlock + kActivationPad - 1) / kActivationPad *
                     kActivationPad / kActivationBlock),
      outlier_share_(outlier_share) {
  const int64_t rows = reads_codes ? 2 * count : count;
  if (reads_codes) {
    codes_ = arena.take<int8_t>(rows * padded_blocks_ * kActivationBlock);
    scales_ = arena.take<float>(rows * padded_blocks_);
    sums_ = arena.take<float>(rows * padded_blocks_);
    half_sums_ = arena.take<float>(rows * padded_blocks_ * 2);
    has_outliers_ = arena.take<std::atomic<bool>>(count);
    for (int64_t r = 0; r < count; ++r) new (has_outliers_ + r) std::atomic<bool>(false);
  }
  if (keep_values && !values) values = own_values_ = arena.take<float>(count * cols);
  rows_ = arena.take<ActivationRow>(rows);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t b = r * padded_blocks_;
    rows_[r] = ActivationRow{};
    if (reads_codes)
      rows_[r] = {codes_ + b * kActivationBlock, scales_ + b, sums_ + b, half_sums_ + 2 * b,
                  nullptr};
    if (keep_values && r < count) rows_[r].values = values + r * cols;
  }
}

void Activations::quantise(const ActivationKernel& kernel, int64_t r, int64_t begin, int64_t end,
                           const float* x) {
  const int64_t first = r * padded_blocks_;
  const int64_t b = first + begin;
  kernel.quantise(x, end - begin, codes_ + b * kActivationBlock, scales_ + b, sums_ + b,
                  half_sums_ + 2 * b);
  for (int64_t i = begin; i < end; ++i, x += kActivationBlock) quantise_residual(kernel, r, i, x);
  if (end < blocks_) return;
  for (const int64_t row : {r, count_ + r}) {
    const int64_t pad = row * padded_blocks_ + blocks_, n = padded_blocks_ - blocks_;
    std::fill_n(codes_ + pad * kActivationBlock, n * kActivationBlock, int8_t{0});
    std::fill_n(scales_ + pad, n, 0.0f);
    std::fill_n(sums_ + pad, n, 0.0f);
    std::fill_n(half_sums_ + 2 * pad, 2 * n, 0.0f);
  }
}

// Of block b of row r, x[32]: zeros where it has no outlier, since another block may have one.
void Activations::quantise_residual(const ActivationKernel& kernel, int64_t r, int64_t b,
                                    const float* x) {
  const int64_t from = r * padded_blocks_ + b, to = from + count_ * padded_blocks_;
  int8_t* codes = codes_ + to * kActivationBlock;
  constexpr int kLanes = 8;  // sums that do not wait for each other
  float lanes[kLanes] = {}, squares = 0;
  for (int i = 0; i < kActivationBlock; i += kLanes)
    for (int j = 0; j < kLanes; ++j) lanes[j] += x[i + j] * x[i + j];
  for (const float lane : lanes) squares += lane;
  const float largest = 127 * scales_[from];
  if (largest * largest <= outlier_share_ * squares || !(largest > 0)) {
    std::fill_n(codes, kActivationBlock, int8_t{0});
    scales_[to] = sums_[to] = half_sums_[2 * to] = half_sums_[2 * to + 1] = 0;
    return;
  }
  float rest[kActivationBlock];
  for (int i = 0; i < kActivationBlock; ++i)
    rest[i] = x[i] - scales_[from] * static_cast<float>(codes_[from * kActivationBlock + i]);
  kernel.quantise(rest, 1, codes, scales_ + to, sums_ + to, half_sums_ + 2 * to);
  has_outliers_[r].store(true, std::memory_order_relaxed);
}

void quantise_share(Activations& activations, const ActivationKernel& kernel, const float* x,
                    const int64_t* rows, int64_t count, int worker, int workers) {
  const int64_t blocks = activations.blocks();
  const Share share(count * blocks, worker, workers);
  for (int64_t i = share.begin; i < share.end;) {
    const int64_t row = rows ? rows[i / blocks] : i / blocks, begin = i % blocks,
                  end = std::min(blocks, begin + share.end - i);
    activations.quantise(kernel, row, begin, end,
                         x + row * activations.cols() + begin * kActivationBlock);
    i += end - begin;
  }
}

}  // namespace hk2
