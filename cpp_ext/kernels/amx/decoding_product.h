// Products of tiles during which the next block of weights is decoded: between two instructions on
// tiles there is room for eight others.
//
// Included by the AVX-512 decoder, whose formats it takes.
#pragma once

#include "product.h"

namespace hk2 {
namespace {

// Decodes `Units` units of 256 weights in every step of a product.
template <class Format, int Units>
class DecodeBetween {
 public:
  DecodeBetween(const Decode& block, int64_t unit) : block_(block), unit_(unit) {}

  HK2_INLINE void step() {
    for (int u = 0; u < Units; ++u, ++unit_) {
      const int64_t r = unit_ / kPerRow, k = unit_ % kPerRow;
      const int64_t offset = r * block_.row_bytes + k * kBytes;
      if (block_.next) prefetch(block_.next + offset, kBytes);
      weights_[u].load(block_.weights + offset);
      out_[u] = block_.out + r * kTileCols + k * kUnit * kTileRows;
    }
  }

  HK2_INLINE void operator()(int i) {
    for (int u = 0; u < Units; ++u) _mm512_store_si512(out_[u] + i * kTileStep, weights_[u][i]);
    __asm__ volatile("" ::: "memory");  // it stays where it is
  }

 private:
  static constexpr int kBytes = kUnitBytes<Format>;
  static constexpr int kPerRow = kDecodeCols / kUnit;

  const Decode& block_;
  int64_t unit_;
  UnitDecoder<Format> weights_[Units];
  uint16_t* out_[Units];
};

template <class Format>
void multiply_and_decode(const TileProduct& call, const Decode& next) {
  constexpr int64_t kUnits = kDecodeSize / kUnit, kSteps = kDecodeCols / kTileCols;
  static_assert(kUnits == 4 * kSteps, "one unit a step lasts for four passes, four for one");
  int64_t unit = 0;
  for (int64_t p = 0; p < call.num_panels; p += 2) {
    if (unit == kUnits) {
      multiply_pass(call, p, Pace());
    } else if (call.num_panels > 6) {
      multiply_pass(call, p, DecodeBetween<Format, 1>(next, unit));
      unit += kSteps;
    } else if (call.num_panels > 2) {
      multiply_pass(call, p, DecodeBetween<Format, 2>(next, unit));
      unit += 2 * kSteps;
    } else {
      multiply_pass(call, p, DecodeBetween<Format, 4>(next, unit));
      unit += 4 * kSteps;
    }
  }
}

}  // namespace
}  // namespace hk2
