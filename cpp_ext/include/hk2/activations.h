// Quantised (or plain) input vectors of a matrix product, in scratch memory.
#pragma once

#include <algorithm>
#include <atomic>

#include "hk2/arena.h"
#include "hk2/kernel_table.h"

namespace hk2 {

// `count` rows of `cols` activations: int8 codes with scales and sums (reads_codes) and / or
// float32 values.
//
// An outlier sets the step of its block of 32, and rounding then costs the other 31. What rounding
// left of such blocks is quantised once more, as a second row that is to be multiplied as well.
class Activations {
 public:
  // Storage from the arena. The float32 rows are `values` [count, cols] if given, else, if
  // keep_values, fresh memory to be filled through values(row). cols is a multiple of 32 if codes
  // are kept. outlier_share: a block has an outlier where one element has more than this share of
  // the sum of squares; 1: never.
  Activations(Arena& arena, int64_t count, int64_t cols, bool reads_codes, bool keep_values,
              const float* values, float outlier_share);

  int64_t count() const { return count_; }
  int64_t cols() const { return cols_; }
  int64_t blocks() const { return blocks_; }  // per row; 0 if codes are not kept
  const ActivationRow& row(int64_t r) const { return rows_[r]; }
  const ActivationRow* rows() const { return rows_; }
  // What rounding left of row r; null where it has no outliers. Known when the row is written.
  const ActivationRow* residual(int64_t r) const {
    return blocks_ && has_outliers_[r].load(std::memory_order_relaxed) ? rows_ + count_ + r
                                                                       : nullptr;
  }
  float* values(int64_t r) { return own_values_ + r * cols_; }

  // Quantises x[32 * (end - begin)] as blocks [begin, end) of row r, which must be the only writer
  // of these blocks. Whoever writes the last block also writes the padding.
  void quantise(const ActivationKernel& kernel, int64_t r, int64_t begin, int64_t end,
                const float* x);

 private:
  void quantise_residual(const ActivationKernel& kernel, int64_t r, int64_t b, const float* x);

  int64_t count_, cols_, blocks_, padded_blocks_;
  float outlier_share_;
  std::atomic<bool>* has_outliers_ = nullptr;  // [count]
  int8_t* codes_ = nullptr;
  float *scales_ = nullptr, *sums_ = nullptr, *half_sums_ = nullptr, *own_values_ = nullptr;
  ActivationRow* rows_;  // [count], and behind them the residuals' where codes are kept
};

// The rows of one product: some tokens, and behind them the residuals of those that have one. Their
// products follow the tokens' in y, and are added to them by add_residuals().
class ProductRows {
 public:
  static constexpr int64_t kTokens = 64;  // at most

  // residual(t): of token t, or null.
  template <class Residual>
  ProductRows(const ActivationRow* rows, int64_t tokens, const Residual& residual)
      : rows_(rows), tokens_(tokens) {
    for (int64_t t = 0; t < tokens; ++t) {
      const ActivationRow* row = residual(t);
      if (!row) continue;
      owners_[residuals_] = t;
      joined_[tokens + residuals_++] = *row;
    }
    if (residuals_) rows_ = std::copy_n(rows, tokens, joined_) - tokens;
  }
  ProductRows(const ProductRows&) = delete;
  ProductRows& operator=(const ProductRows&) = delete;

  const ActivationRow* rows() const { return rows_; }
  int64_t count() const { return tokens_ + residuals_; }
  void add_residuals(float* y, int64_t y_stride, int64_t rows) const {
    for (int64_t i = 0; i < residuals_; ++i) {
      float* sum = y + owners_[i] * y_stride;
      const float* part = y + (tokens_ + i) * y_stride;
      for (int64_t r = 0; r < rows; ++r) sum[r] += part[r];
    }
  }

 private:
  const ActivationRow* rows_;
  int64_t tokens_, residuals_ = 0;
  int64_t owners_[kTokens];
  ActivationRow joined_[2 * kTokens];
};

inline bool reads_codes(const Matrix& matrix) { return matrix.quant->reads_codes; }
inline bool reads_values(const Matrix& matrix) { return !matrix.quant->reads_codes; }

// One worker's part of quantising `count` rows from x [all rows, cols]: those that `rows` names, or
// the first ones if it is null. Nothing to do where codes are not kept.
void quantise_share(Activations& activations, const ActivationKernel& kernel, const float* x,
                    const int64_t* rows, int64_t count, int worker, int workers);

}  // namespace hk2
