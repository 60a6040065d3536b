// IQ4_NL on AVX2: w = d * step[q], signed steps.
#include "../codebooks.h"
#include "tiled.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kBlock = 32, kBlockBytes = sizeof(BlockIQ4_NL);
  static constexpr bool kSigned = true;

  static HK2_INLINE void load(const uint8_t* bytes, Unit& w) {
    const BlockIQ4_NL* block = reinterpret_cast<const BlockIQ4_NL*>(bytes);
    const __m256i steps = _mm256_broadcastsi128_si256(load_16(kStepsIQ4_NL));
    for (int b = 0; b < 8; ++b) {
      const __m128i nibbles = load_16(block[b].qs);
      const __m256i codes = low_nibbles(_mm256_set_m128i(_mm_srli_epi16(nibbles, 4), nibbles));
      w.codes[b] = _mm256_shuffle_epi8(steps, codes);
    }
    w.scales[0] = block_scales(block);
    w.mins[0] = _mm256_setzero_ps();
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx2, IQ4_NL, Tiled<Format>::multiply)
