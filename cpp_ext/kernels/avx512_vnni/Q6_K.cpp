// Q6_K on AVX-512 VNNI: w = d * scale * q - 32 d * scale per group of 16.
#include "tiled.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 16, kMaxCode = 63, kBlock = 256, kBlockBytes = sizeof(BlockQ6_K);
  static constexpr float kMinFactor = 32;

  static HK2_INLINE Unit load(const uint8_t* bytes) {
    const BlockQ6_K& block = *reinterpret_cast<const BlockQ6_K*>(bytes);
    Unit w;
    for (int half = 0; half < 2; ++half) {
      const __m512i low = _mm512_loadu_si512(block.ql + 64 * half);
      const __m512i high = _mm512_broadcast_i64x4(
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.qh + 32 * half)));
      // The two upper bits of weight 32 j + i are bits 2 j.. of byte i: move them to bits 4..5.
      w.codes[2 * half] = join(low, _mm512_sllv_epi16(high, by_half(4, 2)));
      w.codes[2 * half + 1] =
          join(_mm512_srli_epi16(low, 4), _mm512_srlv_epi16(high, by_half(0, 2)));
    }
    const __m512 steps = _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block.scales))));
    const __m512 d = _mm512_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(block.d)));
    const __m512 scales = _mm512_mul_ps(steps, d);
    const __m512i group_of_lane =
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    w.scales = _mm512_permutexvar_ps(group_of_lane, scales);
    w.mins = scales;
    return w;
  }

 private:
  static HK2_INLINE __m512i by_half(short lower, short upper) {
    return _mm512_inserti64x4(_mm512_set1_epi16(lower), _mm256_set1_epi16(upper), 1);
  }
  // Bits 0..3 of `low` and bits 4..5 of `high`.
  static HK2_INLINE __m512i join(__m512i low, __m512i high) {
    const __m512i select =
        _mm512_ternarylogic_epi32(low, high, _mm512_set1_epi8(15), 0xe4);  // C ? low : high
    return _mm512_and_si512(select, _mm512_set1_epi8(63));
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT_DECODED(Q6_K, Format, Tiled<Format>::multiply)
