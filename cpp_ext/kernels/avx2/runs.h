// Runs of weights looked up in a grid, and their signs, 32 weights at a time.
#pragma once

#include "fields.h"

namespace hk2 {
namespace {

HK2_INLINE __m256i runs_of_8(const uint64_t* grid, int a, int b, int c, int d) {
  return _mm256_setr_epi64x(static_cast<long long>(grid[a]), static_cast<long long>(grid[b]),
                            static_cast<long long>(grid[c]), static_cast<long long>(grid[d]));
}

HK2_INLINE __m256i runs_of_4(const uint32_t* grid, __m256i indices) {
  return _mm256_i32gather_epi32(reinterpret_cast<const int*>(grid), indices, 4);
}

// The sign bits of a unit, 32 weights a word.
struct Signs {
  alignas(32) uint32_t words[8];

  explicit HK2_INLINE Signs(__m256i bits) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(words), bits);
  }

  // The magnitudes of the 32 weights of word g, minus where its bit is set.
  HK2_INLINE __m256i apply(int g, __m256i magnitudes) const {
    const __m256i minus = where_set(static_cast<int32_t>(words[g]));
    return _mm256_sub_epi8(_mm256_xor_si256(magnitudes, minus), minus);
  }
};

}  // namespace
}  // namespace hk2
