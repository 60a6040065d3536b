// Many tokens at once on AVX2, a lane a token: four columns in one vpmaddubsw.
#pragma once

#include "../tiled.h"
#include "quantised.h"

namespace hk2 {
namespace {

template <class Format>
struct EightTokens {
  static constexpr int kLanes = 8, kMinTokens = 5, kRows = 4, kStep = 8;
  using Ints = __m256i;
  using Floats = __m256;

  struct UnpackedRow {
    __m256i codes[8];
    __m256i magnitudes[Format::kSigned ? 8 : 1];  // unsigned codes are their own
    alignas(32) float scales[16];
    alignas(32) float mins[16];

    HK2_INLINE float scale(int g) const { return scales[g]; }
    HK2_INLINE float min(int g) const { return mins[g]; }
    HK2_INLINE __m256i start(int) const { return _mm256_setzero_si256(); }
  };

  static HK2_INLINE void unpack(const uint8_t* bytes, UnpackedRow& out) {
    Unit w;
    Format::load(bytes, w);
    for (int b = 0; b < 8; ++b) out.codes[b] = w.codes[b];
    if (Format::kSigned)
      for (int b = 0; b < 8; ++b) out.magnitudes[b] = _mm256_abs_epi8(w.codes[b]);
    for (int i = 0; i < kUnit / Format::kGroup / 8; ++i) {
      _mm256_store_ps(out.scales + 8 * i, w.scales[i]);
      _mm256_store_ps(out.mins + 8 * i, w.mins[i]);
    }
  }

  static HK2_INLINE __m256i prepare(__m256i codes) { return codes; }

  // Four products of unsigned codes (at most 63) fit 16 bits, of signed ones two.
  static HK2_INLINE __m256i multiply(const UnpackedRow& row, int at, const __m256i* x,
                                     __m256i sum) {
    const __m256i ones = _mm256_set1_epi16(1);
    if (!Format::kSigned) {
      const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(four(row.codes, at), x[0]),
                                             _mm256_maddubs_epi16(four(row.codes, at + 4), x[1]));
      return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    }
    __m256i products[2];
    for (int i = 0; i < 2; ++i) {
      const __m256i signed_x = _mm256_sign_epi8(x[i], four(row.codes, at + 4 * i));
      products[i] =
          _mm256_madd_epi16(_mm256_maddubs_epi16(four(row.magnitudes, at + 4 * i), signed_x), ones);
    }
    return _mm256_add_epi32(sum, _mm256_add_epi32(products[0], products[1]));
  }

  static HK2_INLINE __m256 add(__m256 sum, __m256i product, __m256i scales, float scale,
                               __m256i sums, float min) {
    const __m256 factor = _mm256_mul_ps(_mm256_castsi256_ps(scales), _mm256_set1_ps(scale));
    sum = _mm256_fmadd_ps(factor, _mm256_cvtepi32_ps(product), sum);
    return _mm256_fnmadd_ps(_mm256_castsi256_ps(sums), _mm256_set1_ps(min), sum);
  }

  static void transpose(const void* const source[kLanes], int tokens, int blocks, __m256i* out) {
    for (int b = 0; b < blocks; ++b, out += kLanes) {
      __m256i a[kLanes], c[kLanes];
      for (int t = 0; t < kLanes; ++t)
        a[t] = t < tokens ? load_32(static_cast<const uint8_t*>(source[t]) + 32 * b)
                          : _mm256_setzero_si256();
      for (int t = 0; t < kLanes; t += 2) {
        c[t] = _mm256_unpacklo_epi32(a[t], a[t + 1]);
        c[t + 1] = _mm256_unpackhi_epi32(a[t], a[t + 1]);
      }
      for (int t = 0; t < kLanes; t += 4)
        for (int i = 0; i < 2; ++i) {
          a[t + 2 * i] = _mm256_unpacklo_epi64(c[t + i], c[t + i + 2]);
          a[t + 2 * i + 1] = _mm256_unpackhi_epi64(c[t + i], c[t + i + 2]);
        }
      // Now 128-bit lane l of a[4 j + i] is element 4 l + i of tokens 4 j .. 4 j + 3.
      for (int i = 0; i < 4; ++i) {
        out[i] = _mm256_permute2x128_si256(a[i], a[4 + i], 0x20);
        out[4 + i] = _mm256_permute2x128_si256(a[i], a[4 + i], 0x31);
      }
    }
  }

 private:
  static HK2_INLINE __m256i four(const __m256i* codes, int at) {
    int32_t word;
    memcpy(&word, reinterpret_cast<const uint8_t*>(codes) + at, 4);
    return _mm256_set1_epi32(word);
  }
};

template <class Format>
using Tiled = TiledKernel<Format, QuantisedRow<Format>, EightTokens<Format>>;

}  // namespace
}  // namespace hk2
