// Rounding to bfloat16, in C that the compiler vectorises. Internal linkage: see stream.h.
#pragma once

#include <stdint.h>
#include <string.h>

namespace hk2 {
namespace {

// To nearest, ties to even; a NaN stays one.
inline void round_to_bfloat16(const float* x, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    memcpy(&bits, x + i, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
    out[i] = static_cast<uint16_t>(is_nan ? bits >> 16 | 64 : rounded);
  }
}

}  // namespace
}  // namespace hk2
