// Tiles on AMX; everything around them on AVX-512.
#include <immintrin.h>
#include <stdint.h>

namespace hk2 {
namespace {

inline void transpose(uint32_t block[16][16]) {
  __m512i a[16], c[16];
  for (int t = 0; t < 16; ++t) a[t] = _mm512_load_si512(block[t]);
  for (int t = 0; t < 16; t += 2) {
    c[t] = _mm512_unpacklo_epi32(a[t], a[t + 1]);
    c[t + 1] = _mm512_unpackhi_epi32(a[t], a[t + 1]);
  }
  for (int t = 0; t < 16; t += 4)
    for (int i = 0; i < 2; ++i) {
      a[t + 2 * i] = _mm512_unpacklo_epi64(c[t + i], c[t + i + 2]);
      a[t + 2 * i + 1] = _mm512_unpackhi_epi64(c[t + i], c[t + i + 2]);
    }
  // Now 128-bit lane l of a[4 j + i] is element 4 l + i of rows 4 j .. 4 j + 3.
  for (int i = 0; i < 4; ++i) {
    const __m512i low01 = _mm512_shuffle_i32x4(a[i], a[4 + i], 0x44);
    const __m512i low23 = _mm512_shuffle_i32x4(a[i], a[4 + i], 0xee);
    const __m512i high01 = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0x44);
    const __m512i high23 = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0xee);
    _mm512_store_si512(block[i], _mm512_shuffle_i32x4(low01, high01, 0x88));
    _mm512_store_si512(block[4 + i], _mm512_shuffle_i32x4(low01, high01, 0xdd));
    _mm512_store_si512(block[8 + i], _mm512_shuffle_i32x4(low23, high23, 0x88));
    _mm512_store_si512(block[12 + i], _mm512_shuffle_i32x4(low23, high23, 0xdd));
  }
}

}  // namespace
}  // namespace hk2

#include "tiles.h"

extern "C" const hk2::TileKernel* hk2_amx_tiles() { return &hk2::kKernel; }
