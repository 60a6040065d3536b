// IQ1_S on AVX-512 VNNI: ternary runs of 8, groups of 32; w = scale * (grid + 1) - min.
#include "../grids/IQ1_S.h"

#include "runs.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kMaxCode = 2, kBlock = 256, kBlockBytes = sizeof(BlockIQ1_S);
  static constexpr float kMinFactor = 1;

  static HK2_INLINE Unit load(const uint8_t* bytes) {
    const BlockIQ1_S& block = *reinterpret_cast<const BlockIQ1_S*>(bytes);
    Unit w;
    // A word of qh has the high bits of four indices: moved to bits 8..10 of four words.
    const __m512i words = _mm512_cvtepu16_epi64(load_16(block.qh));
    const __m512i high = _mm512_slli_epi16(
        _mm512_srlv_epi16(four_times(words), _mm512_set1_epi64(0x0009000600030000)), 8);
    const __m512i low =
        _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.qs)));
    const Indices indices(
        _mm512_ternarylogic_epi32(low, high, _mm512_set1_epi16(0x700), 0xf8));  // a | (b & c)
    for (int j = 0; j < 4; ++j) w.codes[j] = runs_of_8(kGridIQ1_S, indices[j]);
    const ScalesAndMins groups = scales_of(block);
    set_scales(w, groups.scales, groups.mins);
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx512_vnni, IQ1_S, TiledKernel<Format>::multiply, decode<Format>)
