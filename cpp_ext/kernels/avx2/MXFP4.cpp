// MXFP4 on AVX2: w = 2^(e - 128) * step[q], signed steps.
#include "../codebooks.h"
#include "tiled.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kBlock = 32, kBlockBytes = sizeof(BlockMXFP4);
  static constexpr bool kSigned = true;

  static HK2_INLINE void load(const uint8_t* bytes, Unit& w) {
    const BlockMXFP4* block = reinterpret_cast<const BlockMXFP4*>(bytes);
    const __m256i steps = _mm256_broadcastsi128_si256(load_16(kStepsMXFP4));
    for (int b = 0; b < 8; ++b) {
      const __m128i nibbles = load_16(block[b].qs);
      const __m256i codes = low_nibbles(_mm256_set_m128i(_mm_srli_epi16(nibbles, 4), nibbles));
      w.codes[b] = _mm256_shuffle_epi8(steps, codes);
    }
    w.scales[0] = scales_of_exponents(_mm256_and_si256(block_heads(block), _mm256_set1_epi32(255)));
    w.mins[0] = _mm256_setzero_ps();
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx2, MXFP4, Tiled<Format>::multiply)
