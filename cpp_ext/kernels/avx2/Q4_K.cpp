// Q4_K on AVX2: 32 bytes hold groups 2 j (low nibbles) and 2 j + 1 (high nibbles).
#include "quantised.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kBlock = 256, kBlockBytes = sizeof(BlockQ4_K);
  static constexpr bool kSigned = false;

  static HK2_INLINE void load(const uint8_t* bytes, Unit& w) {
    const BlockQ4_K& block = *reinterpret_cast<const BlockQ4_K*>(bytes);
    for (int j = 0; j < 4; ++j) {
      const __m256i nibbles = load_32(block.qs + 32 * j);
      w.codes[2 * j] = low_nibbles(nibbles);
      w.codes[2 * j + 1] = high_nibbles(nibbles);
    }
    // first = scales 0..3, mins 0..3; second = scales 4..7, mins 4..7 (see unpack_scales_k4 in
    // generic/scalar.h).
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
    const __m256 scales = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(packed));
    const __m256 mins =
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_unpackhi_epi64(packed, packed)));
    w.scales[0] = _mm256_mul_ps(scales, _mm256_set1_ps(half_to_float(block.d)));
    w.mins[0] = _mm256_mul_ps(mins, _mm256_set1_ps(half_to_float(block.dmin)));
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx2, Q4_K, multiply<QuantisedRow<Format>>)
