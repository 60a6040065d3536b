// Codes and scales of a unit on AVX-512: what several formats share.
#pragma once

#include "../avx2/fields.h"
#include "tiled.h"

namespace hk2 {
namespace {

// 64 weights lie in two times 32 columns: `lower` for the first, `upper` for the second.
HK2_INLINE __m512i by_half(short lower, short upper) {
  return _mm512_inserti64x4(_mm512_set1_epi16(lower), _mm256_set1_epi16(upper), 1);
}

// The same 32 bytes in both halves.
HK2_INLINE __m512i twice_32(const void* bytes) {
  return _mm512_broadcast_i64x4(_mm256_loadu_si256(static_cast<const __m256i*>(bytes)));
}

HK2_INLINE __m512i join(__m256i lower, __m256i upper) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(lower), upper, 1);
}
HK2_INLINE __m512 join(__m256 lower, __m256 upper) {
  return _mm512_insertf32x8(_mm512_castps256_ps512(lower), upper, 1);
}

// Two groups of 16 bytes: low nibbles are the first half of a group of 32 codes, high nibbles the
// second. Broadcasts from memory are free.
HK2_INLINE __m512i nibbles_of_pair(const uint8_t* even, const uint8_t* odd) {
  constexpr long long kFour = 0x0004000400040004;
  const __m512i twice =
      _mm512_mask_broadcast_i32x4(_mm512_broadcast_i32x4(load_16(even)), 0xff00, load_16(odd));
  const __m512i shifts = _mm512_setr_epi64(0, 0, kFour, kFour, 0, 0, kFour, kFour);
  return _mm512_and_si512(_mm512_srlv_epi16(twice, shifts), _mm512_set1_epi8(15));
}

// 64 codes of two bits: bits 2 s.. of byte i of each 32 bytes are weight 32 s + i.
HK2_INLINE __m512i two_bits(const uint8_t* qs, int j) {
  const short shift = static_cast<short>(j % 2 * 4);
  const __m512i bits = _mm512_srlv_epi16(twice_32(qs + j / 2 * 32), by_half(shift, shift + 2));
  return _mm512_and_si512(bits, _mm512_set1_epi8(3));
}

// The values of 64 nibbles in a table of 16 bytes.
HK2_INLINE __m512i look_up(const int8_t* table, int8_t offset, __m512i nibbles) {
  const __m512i steps =
      _mm512_add_epi8(_mm512_broadcast_i32x4(load_16(table)), _mm512_set1_epi8(offset));
  return _mm512_shuffle_epi8(steps, nibbles);
}

HK2_INLINE __mmask64 mask_of_words(const uint8_t* even, const uint8_t* odd) {
  uint32_t first, second;
  memcpy(&first, even, 4);
  memcpy(&second, odd, 4);
  return _cvtu64_mask64(first | static_cast<uint64_t>(second) << 32);
}

// Scales in natural order, and the minima.
HK2_INLINE void set_scales(Unit& w, __m256 scales, __m256 mins) {
  w.scales = _mm512_permutexvar_ps(block_of_lane(), _mm512_castps256_ps512(scales));
  w.mins = _mm512_castps256_ps512(mins);
}
HK2_INLINE void set_scales(Unit& w, __m512 scales, __m512 mins) {
  const __m512i group_of_lane =
      _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  w.scales = _mm512_permutexvar_ps(group_of_lane, scales);
  w.mins = mins;
}

}  // namespace
}  // namespace hk2
