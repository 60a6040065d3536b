// Q4_0 on AVX-512 VNNI: eight blocks of 18 bytes make a unit; w = d * q - 8 d.
#include "tiled.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kMaxCode = 15, kBlock = 32, kBlockBytes = sizeof(BlockQ4_0);
  static constexpr float kMinFactor = 8;

  static HK2_INLINE Unit load(const uint8_t* bytes) {
    const BlockQ4_0* block = reinterpret_cast<const BlockQ4_0*>(bytes);
    Unit w;
    for (int j = 0; j < 4; ++j) {
      // Each block's 16 bytes twice, as low and as high nibbles; broadcasts from memory are free.
      const __m512i even = _mm512_broadcast_i32x4(load_16(block[2 * j].qs));
      const __m512i twice = _mm512_mask_broadcast_i32x4(even, 0xff00, load_16(block[2 * j + 1].qs));
      const __m512i shifts = _mm512_setr_epi64(0, 0, kFour, kFour, 0, 0, kFour, kFour);
      w.codes[j] = _mm512_and_si512(_mm512_srlv_epi16(twice, shifts), _mm512_set1_epi8(15));
    }
    // Scales lie every 9 words: four in the 64 bytes from block 0, four in those from block 4.
    const __m512i first = words(0, 9, 18, 27, 0, 0, 0, 0), second = words(0, 0, 0, 0, 0, 9, 18, 27);
    __m512i halves = _mm512_permutexvar_epi16(first, _mm512_loadu_si512(block));
    halves = _mm512_mask_permutexvar_epi16(halves, 0xf0, second, _mm512_loadu_si512(block + 4));
    const __m256 d = _mm256_cvtph_ps(_mm512_castsi512_si128(halves));
    w.scales = _mm512_permutexvar_ps(block_of_lane(), _mm512_castps256_ps512(d));
    w.mins = _mm512_castps256_ps512(d);
    return w;
  }

 private:
  static constexpr long long kFour = 0x0004000400040004;

  static HK2_INLINE __m128i load_16(const uint8_t* bytes) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
  }
  static HK2_INLINE __m512i words(short a, short b, short c, short d, short e, short f, short g,
                                  short h) {
    return _mm512_castsi128_si512(_mm_setr_epi16(a, b, c, d, e, f, g, h));
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT_DECODED(Q4_0, Format, Tiled<Format>::multiply)
