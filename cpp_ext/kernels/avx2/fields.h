// Scales, signs and digits of the stored blocks, unpacked with AVX2 for both vector tiers.
#pragma once

#include <immintrin.h>

#include "../stream.h"

namespace hk2 {
namespace {

HK2_INLINE __m128i load_8(const void* bytes) {
  return _mm_loadl_epi64(static_cast<const __m128i*>(bytes));
}
HK2_INLINE __m128i load_16(const void* bytes) {
  return _mm_loadu_si128(static_cast<const __m128i*>(bytes));
}
HK2_INLINE __m256i load_32(const void* bytes) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(bytes));
}

HK2_INLINE __m256 broadcast_half(uint16_t half) {
  return _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
}

// Eight signed bytes as floats.
HK2_INLINE __m256 to_floats(__m128i bytes) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}

// All ones in the bytes whose bit is set.
HK2_INLINE __m256i where_set(int32_t word) {
  const __m256i byte_of =
      _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201));
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(word), byte_of);
  return _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
}

// The nibbles of eight bytes as sixteen bytes, the low one of each byte first.
HK2_INLINE __m128i nibbles_in_order(__m128i bytes) {
  const __m128i low = _mm_and_si128(bytes, _mm_set1_epi8(15));
  const __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15));
  return _mm_unpacklo_epi8(low, high);
}

// The first four bytes of eight blocks, which may start at any address.
template <class Block>
HK2_INLINE __m256i block_heads(const Block* block) {
  const void* bytes = block;
  const __m256i offsets = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                                             _mm256_set1_epi32(static_cast<int>(sizeof(Block))));
  return _mm256_i32gather_epi32(static_cast<const int*>(bytes), offsets, 1);
}

// The one or two half floats with which each of eight blocks begins.
struct Halves {
  __m256 first, second;
};
template <class Block>
HK2_INLINE Halves block_halves(const Block* block) {
  const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
  const __m256i by_lane =
      _mm256_shuffle_epi8(block_heads(block), _mm256_broadcastsi128_si256(order));
  const __m256i halves = _mm256_permute4x64_epi64(by_lane, 0xd8);
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)),
          _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
}

// 2^(e - 128); the exponents 0 and 1 make subnormal numbers.
HK2_INLINE __m256 scales_of_exponents(__m256i e) {
  const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
  const __m256i subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
  const __m256i is_normal = _mm256_cmpgt_epi32(e, _mm256_set1_epi32(1));
  return _mm256_castsi256_ps(_mm256_blendv_epi8(subnormal, normal, is_normal));
}

// The sixteen scales of Q3_K less 32: low nibbles in eight bytes, two high bits each in four.
HK2_INLINE __m128i steps_of(const BlockQ3_K& block) {
  const __m128i packed = load_8(block.scales);
  const __m128i low =
      _mm_and_si128(_mm_unpacklo_epi64(packed, _mm_srli_epi16(packed, 4)), _mm_set1_epi8(15));
  int32_t bytes;
  memcpy(&bytes, block.scales + 8, 4);
  const __m128i high = _mm_and_si128(
      _mm_srlv_epi32(_mm_set1_epi32(bytes), _mm_setr_epi32(0, 2, 4, 6)), _mm_set1_epi8(3));
  const __m128i steps = _mm_or_si128(low, _mm_slli_epi16(high, 4));
  return _mm_sub_epi8(steps, _mm_set1_epi8(32));
}

struct ScalesAndMins {
  __m256 scales, mins;  // of eight groups
};

// The 6-bit scales and minima of Q4_K and Q5_K (see unpack_scales_k4 in generic/scalar.h), unpacked
// with scalar code: the vector ports are the bottleneck.
template <class Block>
HK2_INLINE ScalesAndMins scales_of_k4(const Block& block) {
  // first = scales 0..3, mins 0..3; second = scales 4..7, mins 4..7.
  uint64_t low;
  uint32_t high;
  memcpy(&low, block.scales, 8);
  memcpy(&high, block.scales + 8, 4);
  const uint64_t nibbles = high | static_cast<uint64_t>(high) << 28;
  const uint64_t first = low & 0x3f3f3f3f3f3f3f3f;
  const uint64_t second = (nibbles & 0x0f0f0f0f0f0f0f0f) | (low >> 2 & 0x3030303030303030);
  const __m128i packed = _mm_shuffle_epi32(
      _mm_set_epi64x(static_cast<long long>(second), static_cast<long long>(first)),
      0xd8);  // scales, then mins
  return {_mm256_mul_ps(to_floats(packed), broadcast_half(block.d)),
          _mm256_mul_ps(to_floats(_mm_unpackhi_epi64(packed, packed)), broadcast_half(block.dmin))};
}

HK2_INLINE __m256 scales_of(const BlockIQ4_XS& block) {
  int32_t low;
  memcpy(&low, block.scales_l, 4);
  const __m256i lows = _mm256_and_si256(
      _mm256_srlv_epi32(_mm256_set1_epi32(low), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28)),
      _mm256_set1_epi32(15));
  const __m256i highs =
      _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(block.scales_h << 4),
                                         _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14)),
                       _mm256_set1_epi32(0x30));
  const __m256i steps = _mm256_sub_epi32(_mm256_or_si256(lows, highs), _mm256_set1_epi32(32));
  return _mm256_mul_ps(_mm256_cvtepi32_ps(steps), broadcast_half(block.d));
}

// d * (top four bits + 1/2) * factor
HK2_INLINE __m256 scales_of_top_bits(__m256i words, uint16_t d, float factor) {
  const __m256 steps = _mm256_cvtepi32_ps(_mm256_srli_epi32(words, 28));
  const __m256 halves = _mm256_add_ps(steps, _mm256_set1_ps(0.5f));
  return _mm256_mul_ps(halves, _mm256_mul_ps(broadcast_half(d), _mm256_set1_ps(factor)));
}

// Twice the scales of IQ2_XS and IQ2_S, sixteen odd integers; the factor is d / 8.
template <class Block>
HK2_INLINE __m128i odd_steps_of(const Block& block) {
  const __m128i steps = nibbles_in_order(load_8(block.scales));
  return _mm_or_si128(_mm_add_epi8(steps, steps), _mm_set1_epi8(1));
}

HK2_INLINE __m256 scales_of(const BlockIQ3_S& block) {
  int32_t packed;
  memcpy(&packed, block.scales, 4);
  const __m128i steps = nibbles_in_order(_mm_cvtsi32_si128(packed));
  const __m128i odd = _mm_or_si128(_mm_add_epi8(steps, steps), _mm_set1_epi8(1));
  return _mm256_mul_ps(to_floats(odd), broadcast_half(block.d));
}

// w = scale * 8 (grid + 1) - min with the grid's -1, 0 and 1.
HK2_INLINE ScalesAndMins scales_of(const BlockIQ1_S& block) {
  const __m256i words = _mm256_cvtepu16_epi32(load_16(block.qh));
  const __m256i steps = _mm256_and_si256(_mm256_srli_epi32(words, 11), _mm256_set1_epi32(14));
  const __m256 d = _mm256_mul_ps(broadcast_half(block.d), _mm256_set1_ps(0.125f));
  const __m256 scales =
      _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_or_si256(steps, _mm256_set1_epi32(1))), d);
  // 8 - 8 shift: 7, or 9 where bit 15 is set.
  const __m256i offsets = _mm256_add_epi32(
      _mm256_and_si256(_mm256_srli_epi32(words, 14), _mm256_set1_epi32(2)), _mm256_set1_epi32(7));
  return {scales, _mm256_mul_ps(scales, _mm256_cvtepi32_ps(offsets))};
}

HK2_INLINE uint16_t half_of(const BlockIQ1_M& block) {
  uint64_t words;
  memcpy(&words, block.scales, 8);
  return static_cast<uint16_t>((words >> 12 & 15) | (words >> 24 & 0xf0) | (words >> 36 & 0xf00) |
                               (words >> 48 & 0xf000));
}

// Sixteen odd integers; the factor is half_of(block).
HK2_INLINE __m128i odd_steps_of(const BlockIQ1_M& block) {
  // Each word four times; the dwords of a word want bits 0.. and 3.., and 6.. and 9...
  const __m256i words = _mm256_cvtepu16_epi64(load_8(block.scales));
  const __m256i twice = _mm256_or_si256(words, _mm256_slli_epi64(words, 26));  // >> 6
  const __m256i low = _mm256_and_si256(_mm256_slli_epi32(twice, 1), _mm256_set1_epi32(14));
  const __m256i high = _mm256_and_si256(_mm256_slli_epi32(twice, 14), _mm256_set1_epi32(14 << 16));
  const __m256i steps = _mm256_or_si256(low, high);  // 16-bit lanes
  const __m128i packed =
      _mm_packus_epi16(_mm256_castsi256_si128(steps), _mm256_extracti128_si256(steps, 1));
  return _mm_or_si128(packed, _mm_set1_epi8(1));
}

// Bytes of seven signs get the eighth, which makes the number of minuses even.
HK2_INLINE __m256i add_even_sign(__m256i sevens) {
  const __m256i odd = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0));
  const __m256i high = _mm256_and_si256(_mm256_srli_epi16(sevens, 4), _mm256_set1_epi8(7));
  const __m256i parity =
      _mm256_xor_si256(_mm256_shuffle_epi8(odd, sevens), _mm256_shuffle_epi8(odd, high));
  return _mm256_or_si256(sevens, parity);
}

// Eight words of four times seven signs: 256 bits, one a weight.
HK2_INLINE __m256i even_signs_of_words(__m256i words) {
  const __m256i seven = _mm256_set1_epi32(127);
  __m256i bytes = _mm256_and_si256(words, seven);
  for (int i = 1; i < 4; ++i)
    bytes = _mm256_or_si256(
        bytes, _mm256_and_si256(_mm256_slli_epi32(words, i), _mm256_slli_epi32(seven, 8 * i)));
  return add_even_sign(bytes);
}

// The 256 digits 0..2 of a block, in natural order.
struct Digits {
  __m256i codes[8];
};
HK2_INLINE __m256i first_digit(__m256i fractions) {  // 3 * fraction / 256
  const __m256i one = _mm256_set1_epi8(86), two = _mm256_set1_epi8(static_cast<char>(171));
  const __m256i at_least_one = _mm256_cmpeq_epi8(_mm256_max_epu8(fractions, one), fractions);
  const __m256i at_least_two = _mm256_cmpeq_epi8(_mm256_max_epu8(fractions, two), fractions);
  return _mm256_sub_epi8(_mm256_setzero_si256(), _mm256_add_epi8(at_least_one, at_least_two));
}
HK2_INLINE __m256i times_three(__m256i bytes) {  // mod 256
  return _mm256_add_epi8(bytes, _mm256_add_epi8(bytes, bytes));
}
HK2_INLINE Digits digits_of(const BlockTQ1_0& block) {
  Digits out;
  __m256i wide = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.qs));
  for (int n = 0; n < 5; ++n, wide = times_three(wide)) out.codes[n] = first_digit(wide);
  // Sixteen bytes and their triples, then each pair of digits is nine times the one before.
  const __m256i narrow = _mm256_broadcastsi128_si256(load_16(block.qs + 32));
  __m256i pair = _mm256_blend_epi32(narrow, times_three(narrow), 0xf0);
  for (int n = 5; n < 7; ++n, pair = times_three(times_three(pair)))
    out.codes[n] = first_digit(pair);
  // The fifth digit of the sixteen and, in the upper half, four digits of the last four bytes.
  int32_t last;
  memcpy(&last, block.qh, 4);
  __m256i rest = _mm256_set1_epi32(last);
  const __m256i once = times_three(rest), twice = times_three(once);
  rest = _mm256_blend_epi32(rest, once, 0x20);
  rest = _mm256_blend_epi32(rest, twice, 0x40);
  rest = _mm256_blend_epi32(rest, times_three(twice), 0x80);
  out.codes[7] = first_digit(_mm256_blend_epi32(pair, rest, 0xf0));
  return out;
}

}  // namespace
}  // namespace hk2
