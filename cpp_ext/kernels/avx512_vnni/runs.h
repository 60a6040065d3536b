// Runs of weights looked up in a grid, and their signs, 64 weights at a time.
#pragma once

#include "fields.h"

namespace hk2 {
namespace {

HK2_INLINE __m512i runs_of_8(const uint64_t* grid, __m256i indices) {
  return _mm512_i32gather_epi64(indices, grid, 8);
}
HK2_INLINE __m512i runs_of_4(const uint32_t* grid, __m512i indices) {
  return _mm512_i32gather_epi32(indices, grid, 4);
}

// 32 indices of 16 bits, eight at a time.
struct Indices {
  __m128i eights[4];

  explicit HK2_INLINE Indices(__m512i words)
      : eights{_mm512_castsi512_si128(words), _mm512_extracti32x4_epi32(words, 1),
               _mm512_extracti32x4_epi32(words, 2), _mm512_extracti32x4_epi32(words, 3)} {}

  HK2_INLINE __m256i operator[](int j) const { return _mm256_cvtepu16_epi32(eights[j]); }
};

// The low word of each quadword, four times.
HK2_INLINE __m512i four_times(__m512i quadwords) {
  return _mm512_shuffle_epi8(quadwords,
                             _mm512_set4_epi32(0x09080908, 0x09080908, 0x01000100, 0x01000100));
}

// The sign bits of a unit, 64 weights a word.
struct Signs {
  alignas(32) uint64_t words[4];

  explicit HK2_INLINE Signs(__m256i bits) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(words), bits);
  }

  // offset + magnitude, or offset - magnitude where the bit of word j is set.
  HK2_INLINE __m512i apply(int j, __m512i magnitudes, __m512i offset) const {
    return _mm512_mask_sub_epi8(_mm512_add_epi8(offset, magnitudes), _cvtu64_mask64(words[j]),
                                offset, magnitudes);
  }
};

}  // namespace
}  // namespace hk2
