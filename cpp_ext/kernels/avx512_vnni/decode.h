// Units of 256 weights become bfloat16: float32 whose upper halves are taken.
//
// A group of few codes has few values: they are computed once and looked up by their odd words, for
// 32 weights at a time. Groups of many codes are computed weight by weight, even ones and odd ones
// apart, which need no shuffle to come together again.
#pragma once

#include "quantised.h"

namespace hk2 {
namespace {

// The upper half, rounded to nearest, is what to take.
HK2_INLINE __m512i rounded(__m512 values) {
  return _mm512_add_epi32(_mm512_castps_si512(values), _mm512_set1_epi32(0x8000));
}

// 32 weights of one group, or of two groups of 16.
template <class Format>
HK2_INLINE __m512i decode_32(__m256i codes, const float scale[2], const float offset[2]) {
  constexpr bool kPair = Format::kGroup == 16;
  constexpr uint32_t kOddWords = 0xaaaaaaaa;
  const __m512i words = _mm512_cvtepu8_epi16(codes);
  const __m512 scale_0 = _mm512_set1_ps(scale[0]), offset_0 = _mm512_set1_ps(offset[0]);
  const __m512 scale_1 = _mm512_set1_ps(scale[1]), offset_1 = _mm512_set1_ps(offset[1]);
  if (Format::kMaxCode < (kPair ? 16 : 32)) {
    const __m512 steps = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i first = rounded(_mm512_fmsub_ps(steps, scale_0, offset_0));
    const __m512i twice = _mm512_add_epi16(words, words);
    if (kPair) {
      const __m512i second = rounded(_mm512_fmsub_ps(steps, scale_1, offset_1));
      const __m512i of_second = _mm512_inserti64x4(_mm512_set1_epi16(1), _mm256_set1_epi16(33), 1);
      return _mm512_permutex2var_epi16(first, _mm512_or_si512(twice, of_second), second);
    }
    const __m512i index = _mm512_or_si512(twice, _mm512_set1_epi16(1));
    if (Format::kMaxCode < 16) return _mm512_permutexvar_epi16(index, first);
    const __m512 more = _mm512_add_ps(steps, _mm512_set1_ps(16));
    return _mm512_permutex2var_epi16(first, index,
                                     rounded(_mm512_fmsub_ps(more, scale_0, offset_0)));
  }
  const __m512 scales = kPair ? _mm512_mask_blend_ps(0xff00, scale_0, scale_1) : scale_0;
  const __m512 offsets = kPair ? _mm512_mask_blend_ps(0xff00, offset_0, offset_1) : offset_0;
  const __m512 even = _mm512_cvtepi32_ps(_mm512_and_si512(words, _mm512_set1_epi32(0xffff)));
  const __m512 odd = _mm512_cvtepi32_ps(_mm512_srli_epi32(words, 16));
  return _mm512_mask_blend_epi16(
      kOddWords, _mm512_srli_epi32(rounded(_mm512_fmsub_ps(even, scales, offsets)), 16),
      rounded(_mm512_fmsub_ps(odd, scales, offsets)));
}

// A unit whose weights become bfloat16 32 at a time.
template <class Format>
class UnitDecoder {
 public:
  HK2_INLINE void load(const uint8_t* bytes) {
    const Unit w = Format::load(bytes);
    for (int j = 0; j < 4; ++j) codes_[j] = w.codes[j];
    _mm512_store_ps(scales_, w.scales);  // in the order of reduced lanes
    _mm512_store_ps(offsets_, _mm512_mul_ps(w.mins, _mm512_set1_ps(Format::kMinFactor)));
    // Broadcasts shall be loads: as permutations of registers they would crowd the shuffles' port.
    __asm__("" : "+m"(scales_), "+m"(offsets_));
  }

  // Weights 32 i .. 32 i + 31.
  HK2_INLINE __m512i operator[](int i) const {
    constexpr bool kPair = Format::kGroup == 16;
    const int g = 2 * i, h = g + 1;  // groups of 16
    const int one = i / 2 + 8 * (i % 2);
    const float scale[2] = {scales_[kPair ? g / 4 + 4 * (g % 4) : one],
                            scales_[kPair ? h / 4 + 4 * (h % 4) : one]};
    const float offset[2] = {offsets_[kPair ? g : i], offsets_[kPair ? h : i]};
    const __m256i codes = _mm512_extracti64x4_epi64(codes_[i / 2], i % 2);
    return decode_32<Format>(codes, scale, offset);
  }

 private:
  __m512i codes_[4];
  alignas(64) float scales_[16], offsets_[16];
};

constexpr int64_t kTileStep = kTileRows * kTileCols;  // from 32 columns of a row to the next

template <class Format>
HK2_INLINE void decode_unit(const uint8_t* bytes, uint16_t* out) {
  UnitDecoder<Format> weights;
  weights.load(bytes);
  for (int i = 0; i < 8; ++i) _mm512_store_si512(out + i * kTileStep, weights[i]);
}

template <class Format>
void decode(const Decode& call) {
  constexpr int kBytes = kUnitBytes<Format>;
  for (int64_t r = 0; r < call.rows; ++r) {
    const uint8_t* row = call.weights + r * call.row_bytes;
    const uint8_t* next = call.next ? call.next + r * call.row_bytes : row;
    uint16_t* out = call.out + r * kTileCols;
    const int64_t units = call.cols / kUnit;
    for (int64_t u = 0; u < units; ++u) {
      prefetch(next + u * kBytes, kBytes);
      decode_unit<Format>(row + u * kBytes, out + u * kUnit * kTileRows);
    }
    if (call.cols % kUnit) {
      alignas(64) uint8_t tail[kBytes];
      decode_unit<Format>(last_unit<Format>(row, call.cols, tail), out + units * kUnit * kTileRows);
    }
  }
}

}  // namespace
}  // namespace hk2

// The object's one exported symbol. Compiled for AMX, the same source is a product of tiles.
#if defined(__AMX_BF16__)
#include "../amx/decoding_product.h"
#define HK2_EXPORT_DECODED(quant, Decoded, ...) \
  HK2_EXPORT(amx, quant, nullptr, nullptr, nullptr, multiply_and_decode<Decoded>)
#else
#define HK2_EXPORT_DECODED(quant, Decoded, ...) \
  HK2_EXPORT(avx512_vnni, quant, __VA_ARGS__, decode<Decoded>)
#endif
