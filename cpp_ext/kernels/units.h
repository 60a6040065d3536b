// The integer types on the SIMD tiers: rows are read in units of 256 weights, whatever the blocks.
#pragma once

#include "stream.h"

namespace hk2 {
namespace {

constexpr int kUnit = 256;

// Format: kBlock (weights), kBlockBytes.
template <class Format>
constexpr int kUnitBytes = kUnit / Format::kBlock * Format::kBlockBytes;

// The blocks behind the last whole unit of a row, filled up with zero blocks in `tail` (one unit);
// the activations are padded with zeros.
template <class Format>
HK2_INLINE const uint8_t* last_unit(const uint8_t* row, int64_t cols, uint8_t* tail) {
  const unsigned used = static_cast<unsigned>(cols % kUnit) / Format::kBlock * Format::kBlockBytes;
  memset(tail, 0, kUnitBytes<Format>);
  memcpy(tail, row + cols / kUnit * kUnitBytes<Format>, used);
  return tail;
}

// Sum: one token's products with a row, zero at first. `static Unit load(const uint8_t*)`,
// `add(const Unit&, const ActivationRow&, int64_t unit)` and `float total()`.
template <class Format, class Sum>
struct RowOfUnits {
  template <int N>
  static void dot(const uint8_t* row, const uint8_t* ahead, int64_t cols, const ActivationRow* x,
                  float* y, int64_t y_stride) {
    constexpr int kBytes = kUnitBytes<Format>;
    Sum sum[N];
    const int64_t units = cols / kUnit;
    for (int64_t u = 0; u < units; ++u) {
      prefetch(ahead + u * kBytes, kBytes);
      const auto w = Sum::load(row + u * kBytes);
      for (int i = 0; i < N; ++i) sum[i].add(w, x[i], u);
    }
    if (cols % kUnit) {
      alignas(64) uint8_t tail[kBytes];
      const auto w = Sum::load(last_unit<Format>(row, cols, tail));
      for (int i = 0; i < N; ++i) sum[i].add(w, x[i], units);
    }
    for (int i = 0; i < N; ++i) y[i * y_stride] = sum[i].total();
  }
};

}  // namespace
}  // namespace hk2
