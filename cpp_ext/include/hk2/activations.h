// Quantised (or plain) input vectors of a matrix product, in scratch memory.
#pragma once

#include "hk2/arena.h"
#include "hk2/kernel_table.h"

namespace hk2 {

// `count` rows of `cols` activations: int8 codes with scales and sums (reads_codes) and / or
// float32 values.
class Activations {
 public:
  // Storage from the arena. The float32 rows are `values` [count, cols] if given, else, if
  // keep_values, fresh memory to be filled through values(row). cols is a multiple of 32 if codes
  // are kept.
  Activations(Arena& arena, int64_t count, int64_t cols, bool reads_codes, bool keep_values,
              const float* values);

  int64_t count() const { return count_; }
  int64_t cols() const { return cols_; }
  int64_t blocks() const { return blocks_; }  // per row; 0 if codes are not kept
  const ActivationRow& row(int64_t r) const { return rows_[r]; }
  const ActivationRow* rows() const { return rows_; }
  float* values(int64_t r) { return own_values_ + r * cols_; }

  // Quantises x[32 * (end - begin)] as blocks [begin, end) of row r, which must be the only writer
  // of these blocks. Whoever writes the last block also writes the padding.
  void quantise(const ActivationKernel& kernel, int64_t r, int64_t begin, int64_t end,
                const float* x);

 private:
  int64_t count_, cols_, blocks_, padded_blocks_;
  int8_t* codes_ = nullptr;
  float *scales_ = nullptr, *sums_ = nullptr, *half_sums_ = nullptr, *own_values_ = nullptr;
  ActivationRow* rows_;
};

inline bool reads_codes(const Matrix& matrix) { return matrix.quant->reads_codes; }
inline bool reads_values(const Matrix& matrix) { return !matrix.quant->reads_codes; }

// One worker's part of quantising all rows from x [count, cols]. Nothing to do where codes are not
// kept.
void quantise_share(Activations& activations, const ActivationKernel& kernel, const float* x,
                    int worker, int workers);

}  // namespace hk2
