// The inner loop of the integer types on AVX2: 256 weights at a time as eight vectors of 32 codes
// in natural order, vpmaddubsw + vpmaddwd against the activation codes, and one float multiply-add
// per vector.
//
// A format delivers units of 256 weights:  weight = scale * code - min, groups of kGroup weights.
// Codes are unsigned and at most 63 (two products of 63 * 127 fit 16 bits), or signed (kSigned),
// where the sign moves to the activation.
#pragma once

#include <immintrin.h>

#include "../units.h"
#include "fields.h"

namespace hk2 {
namespace {

struct Unit {
  __m256i codes[8];
  __m256 scales[2];  // natural order; groups of 32 use only [0]
  __m256 mins[2];
};

// Format: kGroup (16 or 32), kSigned, kBlock (weights), kBlockBytes, `static void load(const
// uint8_t*, Unit&)`.
template <class Format>
class UnitSum {
 public:
  static HK2_INLINE Unit load(const uint8_t* bytes) {
    Unit w;
    Format::load(bytes, w);
    return w;
  }

  HK2_INLINE void add(const Unit& w, const ActivationRow& x, int64_t unit) {
    const int8_t* codes = x.codes + unit * kUnit;
    const __m256 x_scales = _mm256_loadu_ps(x.scales + unit * 8);
    alignas(32) float scales[16];
    if (Format::kGroup == 16) {
      const __m256 lower =
          _mm256_permutevar8x32_ps(x_scales, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
      const __m256 upper =
          _mm256_permutevar8x32_ps(x_scales, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7));
      _mm256_store_ps(scales, _mm256_mul_ps(w.scales[0], lower));
      _mm256_store_ps(scales + 8, _mm256_mul_ps(w.scales[1], upper));
      offsets_ = _mm256_fmadd_ps(w.mins[0], _mm256_loadu_ps(x.half_sums + unit * 16), offsets_);
      offsets_ = _mm256_fmadd_ps(w.mins[1], _mm256_loadu_ps(x.half_sums + unit * 16 + 8), offsets_);
    } else {
      _mm256_store_ps(scales, _mm256_mul_ps(w.scales[0], x_scales));
      offsets_ = _mm256_fmadd_ps(w.mins[0], _mm256_loadu_ps(x.sums + unit * 8), offsets_);
    }
    for (int b = 0; b < 8; ++b) {
      const __m256i product = multiply_codes(
          w.codes[b], _mm256_load_si256(reinterpret_cast<const __m256i*>(codes + 32 * b)));
      // Lanes 0..3 are the first 16 weights, 4..7 the second.
      const __m256 scale = Format::kGroup == 16 ? _mm256_set_m128(_mm_set1_ps(scales[2 * b + 1]),
                                                                  _mm_set1_ps(scales[2 * b]))
                                                : _mm256_set1_ps(scales[b]);
      products_ = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(product), products_);
    }
  }

  HK2_INLINE float total() const {
    const __m256 difference = _mm256_sub_ps(products_, offsets_);
    __m128 v = _mm_add_ps(_mm256_castps256_ps128(difference), _mm256_extractf128_ps(difference, 1));
    v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
  }

 private:
  static HK2_INLINE __m256i multiply_codes(__m256i w, __m256i x) {
    const __m256i pairs = Format::kSigned
                              ? _mm256_maddubs_epi16(_mm256_sign_epi8(w, w), _mm256_sign_epi8(x, w))
                              : _mm256_maddubs_epi16(w, x);
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }

  __m256 products_ = _mm256_setzero_ps();
  __m256 offsets_ = _mm256_setzero_ps();
};

template <class Format>
using QuantisedRow = RowOfUnits<Format, UnitSum<Format>>;

HK2_INLINE __m256i low_nibbles(__m256i bytes) {
  return _mm256_and_si256(bytes, _mm256_set1_epi8(15));
}
HK2_INLINE __m256i high_nibbles(__m256i bytes) { return low_nibbles(_mm256_srli_epi16(bytes, 4)); }

// The scales of eight blocks that begin with a half float.
template <class Block>
HK2_INLINE __m256 block_scales(const Block* block) {
  return _mm256_cvtph_ps(
      _mm_setr_epi16(static_cast<short>(block[0].d), static_cast<short>(block[1].d),
                     static_cast<short>(block[2].d), static_cast<short>(block[3].d),
                     static_cast<short>(block[4].d), static_cast<short>(block[5].d),
                     static_cast<short>(block[6].d), static_cast<short>(block[7].d)));
}

HK2_INLINE float half_to_float(uint16_t half) {
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
}

}  // namespace
}  // namespace hk2
