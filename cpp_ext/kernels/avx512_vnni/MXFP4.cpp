// MXFP4 on AVX-512 VNNI: w = 2^(e - 128) * (step[q] + 12) - 12 * 2^(e - 128).
#include "../codebooks.h"
#include "fields.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kMaxCode = 24, kBlock = 32, kBlockBytes = sizeof(BlockMXFP4);
  static constexpr float kMinFactor = 12;

  static HK2_INLINE Unit load(const uint8_t* bytes) {
    const BlockMXFP4* block = reinterpret_cast<const BlockMXFP4*>(bytes);
    Unit w;
    for (int j = 0; j < 4; ++j) {
      const __m512i nibbles = nibbles_of_pair(block[2 * j].qs, block[2 * j + 1].qs);
      w.codes[j] = look_up(kStepsMXFP4, 12, nibbles);
    }
    const __m256i exponents = _mm256_and_si256(block_heads(block), _mm256_set1_epi32(255));
    const __m256 scales = scales_of_exponents(exponents);
    set_scales(w, scales, scales);
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT_DECODED(MXFP4, Format, Tiled<Format>::multiply)
