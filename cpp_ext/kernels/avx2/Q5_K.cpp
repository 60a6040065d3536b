// Q5_K on AVX2: as Q4_K, and bit g of byte i of qh is the fifth bit of weight i of group g.
#include "tiled.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kBlock = 256, kBlockBytes = sizeof(BlockQ5_K);
  static constexpr bool kSigned = false;

  static HK2_INLINE void load(const uint8_t* bytes, Unit& w) {
    const BlockQ5_K& block = *reinterpret_cast<const BlockQ5_K*>(bytes);
    const __m256i high = load_32(block.qh);
    for (int j = 0; j < 4; ++j) {
      const __m256i nibbles = load_32(block.qs + 32 * j);
      const __m256i fifth = j < 2 ? _mm256_slli_epi16(high, 4 - 2 * j)
                                  : _mm256_srli_epi16(high, 2 * j - 4);  // of group 2 j in bit 4
      w.codes[2 * j] = join(low_nibbles(nibbles), fifth);
      w.codes[2 * j + 1] = join(high_nibbles(nibbles), _mm256_srli_epi16(fifth, 1));
    }
    const ScalesAndMins groups = scales_of_k4(block);
    w.scales[0] = groups.scales;
    w.mins[0] = groups.mins;
  }

 private:
  static HK2_INLINE __m256i join(__m256i nibbles, __m256i fifth) {
    return _mm256_or_si256(nibbles, _mm256_and_si256(fifth, _mm256_set1_epi8(16)));
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx2, Q5_K, Tiled<Format>::multiply)
