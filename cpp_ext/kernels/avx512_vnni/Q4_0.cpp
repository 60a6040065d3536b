// Q4_0 on AVX-512 VNNI: eight blocks of 18 bytes make a unit; w = d * q - 8 d.
#include "quantised.h"

namespace hk2 {
namespace {

struct Format {
  static constexpr int kGroup = 32, kMaxCode = 15, kBlock = 32, kBlockBytes = sizeof(BlockQ4_0);

  static HK2_INLINE Unit load(const uint8_t* bytes) {
    // A pair of blocks is 36 bytes: scale, 16 bytes, scale, 16 bytes. Each 16 bytes are wanted
    // twice, as low and as high nibbles. The last pair is read 28 bytes early so that no load
    // passes the unit's end.
    const __m512i pair = words(1, 1, 10, 10), last_pair = words(15, 15, 24, 24);
    const __m512i shifts =
        _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 0, 1, 1, 0, 0, 1, 1),
                                 _mm512_setr_epi64(0, 0x0004000400040004, 0, 0, 0, 0, 0, 0));
    const __m512i pairs[4] = {load_at(bytes), load_at(bytes + 36), load_at(bytes + 72),
                              load_at(bytes + 80)};
    Unit w;
    for (int j = 0; j < 4; ++j) {
      const __m512i twice = _mm512_permutexvar_epi16(j == 3 ? last_pair : pair, pairs[j]);
      w.codes[j] = _mm512_and_si512(_mm512_srlv_epi16(twice, shifts), _mm512_set1_epi8(15));
    }
    // Scales lie every 9 words: four in the first load, four in the one at byte 72.
    const __m512i order = _mm512_castsi256_si512(
        _mm256_setr_epi16(0, 9, 18, 27, 32, 41, 50, 59, 0, 0, 0, 0, 0, 0, 0, 0));
    const __m512i halves = _mm512_permutex2var_epi16(pairs[0], order, pairs[2]);
    const __m256 d = _mm256_cvtph_ps(_mm512_castsi512_si128(halves));
    w.scales = _mm512_permutexvar_ps(block_of_lane(), _mm512_castps256_ps512(d));
    w.mins = _mm512_castps256_ps512(_mm256_mul_ps(d, _mm256_set1_ps(8)));
    return w;
  }

 private:
  static HK2_INLINE __m512i load_at(const uint8_t* bytes) { return _mm512_loadu_si512(bytes); }

  // Indices of eight consecutive words from each of four starts, one start per 128-bit lane.
  static HK2_INLINE __m512i words(short a, short b, short c, short d) {
    const __m128i step = _mm_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7);
    __m512i all = _mm512_castsi128_si512(_mm_add_epi16(step, _mm_set1_epi16(a)));
    all = _mm512_inserti64x2(all, _mm_add_epi16(step, _mm_set1_epi16(b)), 1);
    all = _mm512_inserti64x2(all, _mm_add_epi16(step, _mm_set1_epi16(c)), 2);
    return _mm512_inserti64x2(all, _mm_add_epi16(step, _mm_set1_epi16(d)), 3);
  }
};

}  // namespace
}  // namespace hk2

HK2_EXPORT(avx512_vnni, Q4_0, QuantisedRow<Format>)
