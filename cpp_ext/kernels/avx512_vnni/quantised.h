// The inner loop of the integer types: 256 weights at a time as four vectors of 64 unsigned codes
// in natural order, vpdpbusd against the activation codes, and one float multiply-add per vector of
// group sums.
//
// A format delivers units of 256 weights:  weight = scale * code - kMinFactor * min,  code in
// 0..kMaxCode, groups of kGroup weights. Reducing the four product vectors gives 16 lanes: for
// groups of 16, lane 4 i + j is group 4 j + i; for groups of 32 it is half of the sum of group
// 2 j + i / 2.
#pragma once

#include <immintrin.h>

#include "../units.h"

namespace hk2 {
namespace {

struct Unit {
  __m512i codes[4];
  __m512 scales;  // in the order of reduced lanes
  __m512 mins;    // natural order; for groups of 32 the upper eight are zero
};

// The activation block, of the unit's eight, to which each reduced lane belongs.
HK2_INLINE __m512i block_of_lane() {
  return _mm512_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6, 1, 3, 5, 7, 1, 3, 5, 7);
}

// Sums each 128-bit lane of the four vectors: lane 4 i + j of the result is the sum of lane i of
// p[j]. Small codes allow the cheaper way through 16-bit lanes: a 32-bit lane holds four products
// of at most kMaxCode * 127.
template <int MaxCode>
HK2_INLINE __m512i reduce(const __m512i p[4]) {
  const __m512i ones = _mm512_set1_epi16(1);
  if (4 * MaxCode * 127 <= INT16_MAX) {
    const __m512i a = _mm512_madd_epi16(_mm512_packs_epi32(p[0], p[1]), ones);
    const __m512i b = _mm512_madd_epi16(_mm512_packs_epi32(p[2], p[3]), ones);
    if (8 * MaxCode * 127 <= INT16_MAX) return _mm512_madd_epi16(_mm512_packs_epi32(a, b), ones);
    const __m512 fa = _mm512_castsi512_ps(a), fb = _mm512_castsi512_ps(b);
    return _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(fa, fb, 0x88)),
                            _mm512_castps_si512(_mm512_shuffle_ps(fa, fb, 0xdd)));
  }
  const __m512i a =
      _mm512_add_epi32(_mm512_unpacklo_epi32(p[0], p[1]), _mm512_unpackhi_epi32(p[0], p[1]));
  const __m512i b =
      _mm512_add_epi32(_mm512_unpacklo_epi32(p[2], p[3]), _mm512_unpackhi_epi32(p[2], p[3]));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

// Format: kGroup (16 or 32), kMaxCode, kMinFactor, kBlock (weights), kBlockBytes, `static Unit
// load(const uint8_t*)`.
template <class Format>
class UnitSum {
 public:
  static HK2_INLINE Unit load(const uint8_t* bytes) { return Format::load(bytes); }

  HK2_INLINE void add(const Unit& w, const ActivationRow& x, int64_t unit) {
    const int8_t* codes = x.codes + unit * kUnit;
    __m512i p[4];
    for (int j = 0; j < 4; ++j)
      p[j] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w.codes[j],
                                 _mm512_load_si512(codes + 64 * j));
    const __m512 scales = _mm512_permutexvar_ps(
        block_of_lane(), _mm512_castps256_ps512(_mm256_loadu_ps(x.scales + unit * 8)));
    const __m512 products = _mm512_cvtepi32_ps(reduce<Format::kMaxCode>(p));
    products_ = _mm512_fmadd_ps(_mm512_mul_ps(w.scales, scales), products, products_);
    const float* sums = Format::kGroup == 16 ? x.half_sums + unit * 16 : x.sums + unit * 8;
    if (Format::kGroup == 16) {
      offsets_ = _mm512_fmadd_ps(w.mins, _mm512_loadu_ps(sums), offsets_);
    } else {
      offsets_ = _mm512_castps256_ps512(_mm256_fmadd_ps(
          _mm512_castps512_ps256(w.mins), _mm256_loadu_ps(sums), _mm512_castps512_ps256(offsets_)));
    }
  }

  HK2_INLINE float total() const {
    const float offsets =
        Format::kGroup == 16
            ? _mm512_reduce_add_ps(offsets_)
            : _mm512_reduce_add_ps(_mm512_zextps256_ps512(_mm512_castps512_ps256(offsets_)));
    return _mm512_reduce_add_ps(products_) - Format::kMinFactor * offsets;
  }

 private:
  __m512 products_ = _mm512_setzero_ps();
  __m512 offsets_ = _mm512_setzero_ps();
};

template <class Format>
using QuantisedRow = RowOfUnits<Format, UnitSum<Format>>;

// 32 bytes of nibbles become 64 codes: low nibbles in the lower half of the vector, high nibbles in
// the upper half.
HK2_INLINE __m512i spread_nibbles(__m512i twice) {
  const __m512i shifts = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
  return _mm512_and_si512(_mm512_srlv_epi16(twice, shifts), _mm512_set1_epi8(15));
}

}  // namespace
}  // namespace hk2
