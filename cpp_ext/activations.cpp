#include "hk2/activations.h"

#include <algorithm>
#include <cstring>

#include "hk2/thread_pool.h"

namespace hk2 {

Activations::Activations(Arena& arena, int64_t count, int64_t cols, bool reads_codes,
                         bool keep_values, const float* values)
    : count_(count),
      cols_(cols),
      blocks_(reads_codes ? cols / kActivationBlock : 0),
      padded_blocks_((blocks_ * kActivationBlock + kActivationPad - 1) / kActivationPad *
                     kActivationPad / kActivationBlock) {
  if (reads_codes) {
    codes_ = arena.take<int8_t>(count * padded_blocks_ * kActivationBlock);
    scales_ = arena.take<float>(count * padded_blocks_);
    sums_ = arena.take<float>(count * padded_blocks_);
    half_sums_ = arena.take<float>(count * padded_blocks_ * 2);
  }
  if (keep_values && !values) values = own_values_ = arena.take<float>(count * cols);
  rows_ = arena.take<ActivationRow>(count);
  for (int64_t r = 0; r < count; ++r) {
    const int64_t b = r * padded_blocks_;
    rows_[r] = ActivationRow{};
    if (reads_codes)
      rows_[r] = {codes_ + b * kActivationBlock, scales_ + b, sums_ + b, half_sums_ + 2 * b,
                  nullptr};
    if (keep_values) rows_[r].values = values + r * cols;
  }
}

void Activations::quantise(const ActivationKernel& kernel, int64_t r, int64_t begin, int64_t end,
                           const float* x) {
  const int64_t first = r * padded_blocks_;
  const int64_t b = first + begin;
  kernel.quantise(x, end - begin, codes_ + b * kActivationBlock, scales_ + b, sums_ + b,
                  half_sums_ + 2 * b);
  if (end < blocks_) return;
  const int64_t pad = first + blocks_, n = padded_blocks_ - blocks_;
  std::fill_n(codes_ + pad * kActivationBlock, n * kActivationBlock, int8_t{0});
  std::fill_n(scales_ + pad, n, 0.0f);
  std::fill_n(sums_ + pad, n, 0.0f);
  std::fill_n(half_sums_ + 2 * pad, 2 * n, 0.0f);
}

void quantise_share(Activations& activations, const ActivationKernel& kernel, const float* x,
                    int worker, int workers) {
  const int64_t blocks = activations.blocks();
  const Share share(activations.count() * blocks, worker, workers);
  for (int64_t i = share.begin; i < share.end;) {
    const int64_t row = i / blocks, begin = i % blocks,
                  end = std::min(blocks, begin + share.end - i);
    activations.quantise(kernel, row, begin, end,
                         x + row * activations.cols() + begin * kActivationBlock);
    i += end - begin;
  }
}

}  // namespace hk2
