// Q4_K on AVX-512 VNNI: 32 bytes hold groups 2 j (low nibbles) and 2 j + 1 (high nibbles).
#include "tiled.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kMaxCode = 15, kBlock = 256, kBlockBytes = sizeof(BlockQ4_K);
  static constexpr float kMinFactor = 1;

  static HK2_INLINE Unit load(const uint8_t* bytes) {
    const BlockQ4_K& block = *reinterpret_cast<const BlockQ4_K*>(bytes);
    Unit w;
    for (int j = 0; j < 4; ++j) {
      const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.qs + 32 * j));
      w.codes[j] = spread_nibbles(_mm512_broadcast_i64x4(half));
    }
    // The twelve bytes of scales are unpacked with scalar code: the vector ports are the
    // bottleneck. first = scales 0..3, mins 0..3; second = scales 4..7, mins 4..7 (see
    // unpack_scales_k4 in generic/scalar.h).
    uint64_t low;
    uint32_t high;
    memcpy(&low, block.scales, 8);
    memcpy(&high, block.scales + 8, 4);
    const uint64_t nibbles = high | static_cast<uint64_t>(high) << 28;
    const uint64_t first = low & 0x3f3f3f3f3f3f3f3f;
    const uint64_t second = (nibbles & 0x0f0f0f0f0f0f0f0f) | (low >> 2 & 0x3030303030303030);
    const __m128i packed =
        _mm_set_epi64x(static_cast<long long>(second), static_cast<long long>(first));
    const __m512 steps = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(packed));
    // d, dmin and two halves of no meaning: converted straight from memory.
    const __m512 d = _mm512_castps128_ps512(
        _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(&block.d))));
    const __m512i d_or_dmin = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1);
    const __m512 scaled = _mm512_mul_ps(steps, _mm512_permutexvar_ps(d_or_dmin, d));
    const __m512i scales = _mm512_setr_epi32(0, 2, 8, 10, 0, 2, 8, 10, 1, 3, 9, 11, 1, 3, 9, 11);
    const __m512i mins = _mm512_setr_epi32(4, 5, 6, 7, 12, 13, 14, 15, 0, 0, 0, 0, 0, 0, 0, 0);
    w.scales = _mm512_permutexvar_ps(scales, scaled);
    w.mins = _mm512_permutexvar_ps(mins, scaled);
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT_DECODED(Q4_K, Format, Tiled<Format>::multiply)
