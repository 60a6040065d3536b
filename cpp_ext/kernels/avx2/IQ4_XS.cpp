// IQ4_XS on AVX2: w = d * scale * step[q], signed steps; 16 bytes are a group.
#include "../codebooks.h"
#include "tiled.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kBlock = 256, kBlockBytes = sizeof(BlockIQ4_XS);
  static constexpr bool kSigned = true;

  static HK2_INLINE void load(const uint8_t* bytes, Unit& w) {
    const BlockIQ4_XS& block = *reinterpret_cast<const BlockIQ4_XS*>(bytes);
    const __m256i steps = _mm256_broadcastsi128_si256(load_16(kStepsIQ4_NL));
    for (int b = 0; b < 8; ++b) {
      const __m128i nibbles = load_16(block.qs + 16 * b);
      const __m256i codes = low_nibbles(_mm256_set_m128i(_mm_srli_epi16(nibbles, 4), nibbles));
      w.codes[b] = _mm256_shuffle_epi8(steps, codes);
    }
    w.scales[0] = scales_of(block);
    w.mins[0] = _mm256_setzero_ps();
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx2, IQ4_XS, Tiled<Format>::multiply)
