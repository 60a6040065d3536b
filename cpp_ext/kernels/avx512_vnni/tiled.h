// Many tokens at once on AVX-512 VNNI, a lane a token: four columns in one vpdpbusd. A group of 32
// weights then costs four more instructions for 16 tokens.
#pragma once

#include "../tiled.h"
#include "decode.h"

namespace hk2 {
namespace {

template <class Format>
struct SixteenTokens {
  static constexpr int kLanes = 16, kMinTokens = kSameBits + 1, kStep = 4;
  using Ints = __m512i;
  using Floats = __m512;

  struct UnpackedRow {
    __m512i codes[4];
    alignas(64) float scales[16];  // in the order of reduced lanes
    alignas(64) float mins[16];

    HK2_INLINE float scale(int g) const {
      return scales[Format::kGroup == 16 ? 4 * (g % 4) + g / 4 : g / 2 + 8 * (g % 2)];
    }
    HK2_INLINE float min(int g) const { return mins[g]; }
  };

  static HK2_INLINE void unpack(const uint8_t* bytes, UnpackedRow& out) {
    const Unit w = Format::load(bytes);
    for (int j = 0; j < 4; ++j) out.codes[j] = w.codes[j];
    _mm512_store_ps(out.scales, w.scales);
    _mm512_store_ps(out.mins, _mm512_mul_ps(w.mins, _mm512_set1_ps(Format::kMinFactor)));
  }

  static HK2_INLINE __m512i multiply(const UnpackedRow& row, int at, const __m512i* x,
                                     __m512i sum) {
    int32_t four;
    memcpy(&four, reinterpret_cast<const uint8_t*>(row.codes) + at, 4);
    return _mm512_dpbusd_epi32(sum, _mm512_set1_epi32(four), *x);
  }

  static HK2_INLINE __m512 add(__m512 sum, __m512i product, __m512i scales, float scale,
                               __m512i sums, float min) {
    const __m512 factor = _mm512_mul_ps(_mm512_castsi512_ps(scales), _mm512_set1_ps(scale));
    sum = _mm512_fmadd_ps(factor, _mm512_cvtepi32_ps(product), sum);
    return _mm512_fnmadd_ps(_mm512_castsi512_ps(sums), _mm512_set1_ps(min), sum);
  }

  static void transpose(const void* const source[kLanes], int tokens, int blocks, __m512i* out) {
    for (int b = 0; b < blocks; ++b, out += kLanes) {
      __m512i a[kLanes], c[kLanes];
      for (int t = 0; t < kLanes; ++t)
        a[t] = t < tokens ? _mm512_loadu_si512(static_cast<const uint8_t*>(source[t]) + 64 * b)
                          : _mm512_setzero_si512();
      for (int t = 0; t < kLanes; t += 2) {
        c[t] = _mm512_unpacklo_epi32(a[t], a[t + 1]);
        c[t + 1] = _mm512_unpackhi_epi32(a[t], a[t + 1]);
      }
      for (int t = 0; t < kLanes; t += 4)
        for (int i = 0; i < 2; ++i) {
          a[t + 2 * i] = _mm512_unpacklo_epi64(c[t + i], c[t + i + 2]);
          a[t + 2 * i + 1] = _mm512_unpackhi_epi64(c[t + i], c[t + i + 2]);
        }
      // Now 128-bit lane l of a[4 j + i] is element 4 l + i of tokens 4 j .. 4 j + 3.
      for (int i = 0; i < 4; ++i) {
        const __m512i low01 = _mm512_shuffle_i32x4(a[i], a[4 + i], 0x44);
        const __m512i low23 = _mm512_shuffle_i32x4(a[i], a[4 + i], 0xee);
        const __m512i high01 = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0x44);
        const __m512i high23 = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0xee);
        out[i] = _mm512_shuffle_i32x4(low01, high01, 0x88);
        out[4 + i] = _mm512_shuffle_i32x4(low01, high01, 0xdd);
        out[8 + i] = _mm512_shuffle_i32x4(low23, high23, 0x88);
        out[12 + i] = _mm512_shuffle_i32x4(low23, high23, 0xdd);
      }
    }
  }
};

template <class Format>
using Tiled = TiledKernel<Format, QuantisedRow<Format>, SixteenTokens<Format>>;

}  // namespace
}  // namespace hk2
