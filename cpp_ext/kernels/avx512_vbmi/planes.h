// Grids of 256 or 512 runs looked up in registers, and signs moved by bit matrices: what VBMI and
// GFNI add to AVX-512 VNNI.
//
// A grid's few magnitudes are numbered, so that two or four of them fit a byte: the bytes of all
// runs at one place in a run are a plane.
#pragma once

#include "../avx512_vnni/laned.h"

namespace hk2 {
namespace {

// masks[i]: the indices that have all bits of 64 i; vpermb reads the six lower ones itself.
template <int Runs>
struct Parts {
  __mmask64 masks[Runs / 64];

  explicit HK2_INLINE Parts(__m512i indices, __mmask64 ninth = 0) {
    masks[1] = _mm512_test_epi8_mask(indices, _mm512_set1_epi8(64));
    masks[2] = _mm512_movepi8_mask(indices);
    masks[3] = _kand_mask64(masks[1], masks[2]);
    if (Runs == 256) return;
    masks[Runs / 128] = ninth;
    for (int i = 1; i < Runs / 128; ++i) masks[Runs / 128 + i] = _kand_mask64(masks[i], ninth);
  }
};

// The numbers of 8 / Bits weights of each run, the first in the lowest bits.
template <int Runs, int Bits>
struct Plane {
  alignas(64) uint8_t bytes[Runs];

  // first: which weight of a run; number(magnitude) has 2 bits, or 3 where Bits is 4.
  template <class Run, class Number>
  constexpr Plane(const Run (&grid)[Runs], int first, Number number) : bytes{} {
    for (int i = 0; i < Runs; ++i)
      for (int k = 0; k < 8 / Bits; ++k)
        bytes[i] = static_cast<uint8_t>(
            bytes[i] | number(static_cast<int>(grid[i] >> (8 * (first + k)) & 255)) << (Bits * k));
  }

  // 64 runs after 64: each part overwrites those that it has in common with the ones before.
  HK2_INLINE __m512i look_up(__m512i indices, const Parts<Runs>& parts) const {
    const __m512i* table = reinterpret_cast<const __m512i*>(bytes);
    __m512i out = _mm512_permutexvar_epi8(indices, table[0]);
    for (int i = 1; i < Runs / 64; ++i)
      out = _mm512_mask_permutexvar_epi8(out, parts.masks[i], indices, table[i]);
    return out;
  }
};

// Output bit i of each byte is the parity of the input's bits in row i; here two rows are not zero.
template <int Out0, int Row0, int Out1, int Row1>
HK2_INLINE __m512i multiply_bits(__m512i bytes) {
  constexpr uint64_t kMatrix = static_cast<uint64_t>(Row0) << (8 * (7 - Out0)) |
                               static_cast<uint64_t>(Row1) << (8 * (7 - Out1));
  return _mm512_gf2p8affine_epi64_epi8(bytes, _mm512_set1_epi64(static_cast<long long>(kMatrix)),
                                       0);
}

// mask ? b : a
HK2_INLINE __m512i select_bits(__m512i a, __m512i b, long long mask) {
  return _mm512_ternarylogic_epi32(a, b, _mm512_set1_epi64(mask), 0xd8);
}

// The signs of a byte's four weights where the codes want them: above the number in a nibble. Of
// four numbers in a byte the nibbles are, in turn, those of weights 0 and 2, and of 1 and 3; of
// numbers that have a nibble each, 0 and 1, and 2 and 3.
template <int Bits>
struct NibbleSigns {
  static constexpr int kAt = Bits == 4 ? 3 : 2;
  __m512i first, second;

  // Four signs in the low bits of each byte.
  explicit HK2_INLINE NibbleSigns(__m512i fours)
      : first(multiply_bits<kAt, 1, 4 + kAt, Bits == 4 ? 2 : 4>(fours)),
        second(multiply_bits<kAt, Bits == 4 ? 4 : 2, 4 + kAt, 8>(fours)) {}

  // Seven signs of eight weights from bits Offsets of each lane, byte by byte; those of the weights
  // 4..7 in bytes where `upper` is not zero. The eighth makes the number of minuses even.
  static HK2_INLINE NibbleSigns even(__m512i lanes, long long offsets, long long upper) {
    const __m512i sevens = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(offsets), lanes);
    const __m512i fours =
        _mm512_multishift_epi64_epi8(_mm512_set1_epi64(offsets + (upper & kFours)), lanes);
    NibbleSigns out(fours);
    out.second = select_bits(out.second, multiply_bits<0, 0, 4 + kAt, 127>(sevens), upper & kLast);
    return out;
  }

 private:
  static constexpr long long kFours = 0x0404040404040404;
  static constexpr long long kLast = 0x0101010101010101ll << (4 + kAt);
};

// values: for each nibble the code, offset + magnitude or offset - magnitude; a byte of `numbers`
// has four numbers.
HK2_INLINE void set_codes(LanedUnit& w, __m512i numbers, const NibbleSigns<2>& signs,
                          __m512i values) {
  constexpr long long kSigns = 0x4444444444444444;
  const __m512i first = select_bits(numbers, signs.first, kSigns);
  const __m512i second = select_bits(_mm512_srli_epi16(numbers, 2), signs.second, kSigns);
  w.codes[0] = _mm512_permutexvar_epi8(first, values);
  w.codes[1] = _mm512_permutexvar_epi8(second, values);
  w.codes[2] = _mm512_permutexvar_epi8(_mm512_srli_epi16(first, 4), values);
  w.codes[3] = _mm512_permutexvar_epi8(_mm512_srli_epi16(second, 4), values);
}
// Two numbers in a byte of each plane.
HK2_INLINE void set_codes(LanedUnit& w, __m512i first, __m512i second, const NibbleSigns<4>& signs,
                          __m512i values) {
  first = _mm512_or_si512(first, signs.first);
  second = _mm512_or_si512(second, signs.second);
  w.codes[0] = _mm512_permutexvar_epi8(first, values);
  w.codes[1] = _mm512_permutexvar_epi8(_mm512_srli_epi16(first, 4), values);
  w.codes[2] = _mm512_permutexvar_epi8(second, values);
  w.codes[3] = _mm512_permutexvar_epi8(_mm512_srli_epi16(second, 4), values);
}

// Magnitudes 8, 25 and 43 of the IQ2 types: numbers, and codes by number and sign.
constexpr int number_of_iq2(int magnitude) { return magnitude >> 4; }
HK2_INLINE __m512i values_of_iq2() {
  return _mm512_set1_epi64(0x0000122300564433);  // 51, 68, 86; 35, 18, 0
}

}  // namespace
}  // namespace hk2
