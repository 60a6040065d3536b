// Runs of weights looked up in a grid, and their signs, 64 weights at a time.
#pragma once

#include "fields.h"

namespace hk2 {
namespace {

// The order of a unit's runs of 8: Sequential, run 8 j + n in lane n of vector j; ByRun8 (laned.h),
// run 4 n + j.
struct Sequential {
  static HK2_INLINE __m512i indices(__m512i words, int j) {
    const __m128i eights[4] = {_mm512_castsi512_si128(words), _mm512_extracti32x4_epi32(words, 1),
                               _mm512_extracti32x4_epi32(words, 2),
                               _mm512_extracti32x4_epi32(words, 3)};
    return _mm512_cvtepu16_epi64(eights[j]);
  }
  // Pairs of runs of 4: 64 bytes.
  static HK2_INLINE __m512i byte_indices(__m512i bytes, int j) {
    const __m128i sixteens[4] = {_mm512_castsi512_si128(bytes), _mm512_extracti32x4_epi32(bytes, 1),
                                 _mm512_extracti32x4_epi32(bytes, 2),
                                 _mm512_extracti32x4_epi32(bytes, 3)};
    return _mm512_cvtepu8_epi32(sixteens[j]);
  }
  static HK2_INLINE __m256i signs(__m256i bits) { return bits; }
};

// The runs of vector j. words: 32 indices of 16 bits.
template <class Order>
HK2_INLINE __m512i runs_of_8(const uint64_t* grid, __m512i words, int j) {
  return _mm512_i64gather_epi64(Order::indices(words, j), grid, 8);
}
HK2_INLINE __m512i runs_of_4(const uint32_t* grid, __m512i indices) {
  return _mm512_i32gather_epi32(indices, grid, 4);
}

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

// 2 s + 1 for each of eight steps, which stand in the four bits from bit `shift` of both halves of
// a lane, times d.
HK2_INLINE __m512 odd_scales(__m512i lanes, int shift, int mask, __m512 d) {
  const __m512i doubled = shift ? _mm512_srli_epi32(lanes, static_cast<unsigned>(shift - 1))
                                : _mm512_slli_epi32(lanes, 1);
  const __m512i odd = _mm512_ternarylogic_epi32(doubled, _mm512_set1_epi32(2 * mask),
                                                _mm512_set1_epi32(1), 0xea);  // (a & b) | c
  return _mm512_mul_ps(_mm512_cvtepi32_ps(odd), d);
}

// The low or the high half of each lane, in both.
HK2_INLINE __m512i low_twice(__m512i lanes) { return _mm512_shuffle_epi32(lanes, _MM_PERM_CCAA); }
HK2_INLINE __m512i high_twice(__m512i lanes) { return _mm512_shuffle_epi32(lanes, _MM_PERM_DDBB); }

}  // namespace
}  // namespace hk2
