// The inner loop of the float types: 64 weights at a time into four accumulators per token.
#pragma once

#include <immintrin.h>

#include "../stream.h"

namespace hk2 {
namespace {

// Format: kBytes per weight, `static __m512 load(const uint8_t*, __mmask16)` for 16 weights, masked
// ones zero, not read.
template <class Format>
struct FloatRow {
  static constexpr int kStep = 16 * Format::kBytes;

  template <int N>
  static void dot(const uint8_t* row, const uint8_t* ahead, int64_t cols, const ActivationRow* x,
                  float* y, int64_t y_stride) {
    __m512 sum[N][4];
    for (int i = 0; i < N; ++i)
      for (int j = 0; j < 4; ++j) sum[i][j] = _mm512_setzero_ps();
    int64_t k = 0;
    for (; k + 64 <= cols; k += 64) {
      prefetch(ahead + k * Format::kBytes, 4 * kStep);
      for (int j = 0; j < 4; ++j) {
        const __m512 w = Format::load(row + k * Format::kBytes + j * kStep, 0xffff);
        for (int i = 0; i < N; ++i)
          sum[i][j] = _mm512_fmadd_ps(w, _mm512_loadu_ps(x[i].values + k + 16 * j), sum[i][j]);
      }
    }
    for (; k < cols; k += 16) {
      const __mmask16 mask =
          static_cast<__mmask16>(cols - k >= 16 ? 0xffff : (1 << (cols - k)) - 1);
      const __m512 w = Format::load(row + k * Format::kBytes, mask);
      for (int i = 0; i < N; ++i)
        sum[i][0] = _mm512_fmadd_ps(w, _mm512_maskz_loadu_ps(mask, x[i].values + k), sum[i][0]);
    }
    for (int i = 0; i < N; ++i)
      y[i * y_stride] = _mm512_reduce_add_ps(
          _mm512_add_ps(_mm512_add_ps(sum[i][0], sum[i][1]), _mm512_add_ps(sum[i][2], sum[i][3])));
  }
};

}  // namespace
}  // namespace hk2
