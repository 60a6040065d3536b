// TQ2_0 on AVX2: w = d * q - d; two bits as in Q2_K.
#include "tiled.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kBlock = 256, kBlockBytes = sizeof(BlockTQ2_0);
  static constexpr bool kSigned = false;

  static HK2_INLINE void load(const uint8_t* bytes, Unit& w) {
    const BlockTQ2_0& block = *reinterpret_cast<const BlockTQ2_0*>(bytes);
    for (int half = 0; half < 2; ++half) {
      __m256i bits = load_32(block.qs + 32 * half);
      for (int j = 0; j < 4; ++j, bits = _mm256_srli_epi16(bits, 2))
        w.codes[4 * half + j] = _mm256_and_si256(bits, _mm256_set1_epi8(3));
    }

    w.scales[0] = w.mins[0] = broadcast_half(block.d);
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx2, TQ2_0, Tiled<Format>::multiply)
