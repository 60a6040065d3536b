// The inner loop of the float types on AVX2: 16 weights at a time into two accumulators per token.
#pragma once

#include <immintrin.h>

#include "../stream.h"

namespace hk2 {
namespace {

// Format: kBytes per weight, `static __m256 load(const uint8_t*)` for 8 weights.
template <class Format>
struct FloatRow {
  template <int N>
  static void dot(const uint8_t* row, const uint8_t* ahead, int64_t cols, const ActivationRow* x,
                  float* y, int64_t y_stride) {
    __m256 sum[N][2];
    for (int i = 0; i < N; ++i) sum[i][0] = sum[i][1] = _mm256_setzero_ps();
    int64_t k = 0;
    for (; k + 16 <= cols; k += 16) {
      if (k % 32 == 0) prefetch(ahead + k * Format::kBytes, 32 * Format::kBytes);
      for (int j = 0; j < 2; ++j) {
        const __m256 w = Format::load(row + (k + 8 * j) * Format::kBytes);
        for (int i = 0; i < N; ++i)
          sum[i][j] = _mm256_fmadd_ps(w, _mm256_loadu_ps(x[i].values + k + 8 * j), sum[i][j]);
      }
    }
    for (; k < cols; k += 8) {  // the rest through zero-filled copies
      const size_t rest = static_cast<size_t>(cols - k < 8 ? cols - k : 8);
      uint8_t weights[8 * Format::kBytes] = {};
      memcpy(weights, row + k * Format::kBytes, rest * Format::kBytes);
      const __m256 w = Format::load(weights);
      for (int i = 0; i < N; ++i) {
        float values[8] = {};
        memcpy(values, x[i].values + k, rest * sizeof(float));
        sum[i][0] = _mm256_fmadd_ps(w, _mm256_loadu_ps(values), sum[i][0]);
      }
    }
    for (int i = 0; i < N; ++i) {
      const __m256 both = _mm256_add_ps(sum[i][0], sum[i][1]);
      __m128 v = _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
      v = _mm_add_ps(v, _mm_movehl_ps(v, v));
      y[i * y_stride] = _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
    }
  }
};

}  // namespace
}  // namespace hk2
