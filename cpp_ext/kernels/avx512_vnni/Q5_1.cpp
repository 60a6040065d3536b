// Q5_1 on AVX-512 VNNI: w = d * q + m; each block has a word of fifth bits.
#include "fields.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kMaxCode = 31, kBlock = 32, kBlockBytes = sizeof(BlockQ5_1);
  static constexpr float kMinFactor = -1;

  static HK2_INLINE Unit load(const uint8_t* bytes) {
    const BlockQ5_1* block = reinterpret_cast<const BlockQ5_1*>(bytes);
    Unit w;
    for (int j = 0; j < 4; ++j) {
      const __m512i low = nibbles_of_pair(block[2 * j].qs, block[2 * j + 1].qs);
      const __mmask64 high = mask_of_words(block[2 * j].qh, block[2 * j + 1].qh);
      w.codes[j] = _mm512_mask_add_epi8(low, high, low, _mm512_set1_epi8(16));
    }
    const Halves halves = block_halves(block);
    set_scales(w, halves.first, halves.second);
    return w;
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT_DECODED(Q5_1, Format, Tiled<Format>::multiply)
