// Many tokens at once on AVX-512 VNNI, a lane a token: four columns in one vpdpbusd. A group of 32
// weights then costs four more instructions for 16 tokens.
//
// The operand that vpdpbusd can broadcast from memory is the signed one. So weights are signed here
// and activations are 128 too large, which -128 times the sum of a group's weights makes up for:
// two thirds of the instructions that loading broadcasts apart would take.
#pragma once

#include "../tiled.h"
#include "decode.h"

namespace hk2 {
namespace {

template <class Format>
struct SixteenTokens {
  static constexpr int kLanes = 16, kMinTokens = kSameBits + 1, kRows = 16, kStep = 4;
  using Ints = __m512i;
  using Floats = __m512;

  struct UnpackedRow {
    __m512i codes[4];
    // In the order of reduced lanes. A group of 32 has its start in both of its lanes.
    alignas(64) float scales[16];
    alignas(64) int32_t starts[16];
    alignas(64) float mins[16];  // in natural order

    HK2_INLINE float scale(int g) const { return scales[lane(g)]; }
    HK2_INLINE float min(int g) const { return mins[g]; }
    HK2_INLINE __m512i start(int g) const { return _mm512_set1_epi32(starts[lane(g)]); }

   private:
    static HK2_INLINE int lane(int g) {
      return Format::kGroup == 16 ? 4 * (g % 4) + g / 4 : g / 2 + 8 * (g % 2);
    }
  };

  static HK2_INLINE void unpack(const uint8_t* bytes, UnpackedRow& out) {
    // Codes that no int8 holds become 128 less; the mins of such formats are their scales.
    constexpr bool kLarge = Format::kMaxCode > 127;
    const __m512i zero = _mm512_setzero_si512(), least = _mm512_set1_epi8(-128);
    const Unit w = Format::load(bytes);
    __m512i starts[4];
    for (int j = 0; j < 4; ++j) {
      out.codes[j] = kLarge ? _mm512_xor_si512(w.codes[j], least) : w.codes[j];
      // `least` is -128 as the second factor and 128 as the first.
      starts[j] = kLarge ? _mm512_sub_epi32(zero, _mm512_dpbusd_epi32(zero, least, out.codes[j]))
                         : _mm512_dpbusd_epi32(zero, w.codes[j], least);
    }
    __m512i reduced = reduce<Format::kMaxCode>(starts);
    if (Format::kGroup == 32)  // both halves of a group
      reduced = _mm512_add_epi32(reduced, _mm512_shuffle_i32x4(reduced, reduced, 0xb1));
    _mm512_store_si512(out.starts, reduced);
    _mm512_store_ps(out.scales, w.scales);
    constexpr float kFactor = Format::kMinFactor - (kLarge ? 128 : 0);
    _mm512_store_ps(out.mins, _mm512_mul_ps(w.mins, _mm512_set1_ps(kFactor)));
  }

  static HK2_INLINE __m512i prepare(__m512i codes) {
    return _mm512_xor_si512(codes, _mm512_set1_epi8(-128));
  }

  static HK2_INLINE __m512i multiply(const UnpackedRow& row, int at, const __m512i* x,
                                     __m512i sum) {
    const uint8_t* four = reinterpret_cast<const uint8_t*>(row.codes) + at;
    // GCC 12 does not broadcast in the instruction itself.
    __asm__("vpdpbusd %2%{1to16%}, %1, %0"
            : "+v"(sum)
            : "v"(*x), "m"(*reinterpret_cast<const int32_t*>(four)));
    return sum;
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
