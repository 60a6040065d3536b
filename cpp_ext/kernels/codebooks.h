// What the codebook types' codes mean besides their grids: tables of 16 steps, signs, ternary runs.
#pragma once

#include <stdint.h>

namespace hk2 {
namespace {

alignas(16) constexpr int8_t kStepsIQ4_NL[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                 1,    13,   25,  38,  53,  69,  89,  113};
// Twice the values of a four-bit float.
alignas(16) constexpr int8_t kStepsMXFP4[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                                0, -1, -2, -3, -4, -6, -8, -12};

// Seven signs and an eighth that makes the number of minuses even.
inline uint32_t even_signs(uint32_t seven) {
  return seven | static_cast<uint32_t>(__builtin_parity(seven)) << 7;
}

// Eight magnitudes, one a byte, minus where a bit is set.
inline void signed_run(uint64_t run, uint32_t signs, int8_t* codes) {
  for (int i = 0; i < 8; ++i) {
    const int magnitude = static_cast<int>(run >> (8 * i) & 255);
    codes[i] = static_cast<int8_t>(signs >> i & 1 ? -magnitude : magnitude);
  }
}

// Eight ternary weights times eight, stored as 0, 8 and 16, plus the shift.
inline void shifted_run(uint64_t run, int shift, int8_t* codes) {
  for (int i = 0; i < 8; ++i)
    codes[i] = static_cast<int8_t>(static_cast<int>(run >> (8 * i) & 255) - 8 + shift);
}

}  // namespace
}  // namespace hk2
