// Products of bfloat16 tiles, in terms of the AMX intrinsics and a transposition that the including
// object provides: the processor's (amx/tiles.cpp) or stand-ins in C (amx_emulated/tiles.cpp).
#pragma once

#include "../bfloat16.h"
#include "product.h"

namespace hk2 {
namespace {

// Palette 1: eight tiles of 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

void open() {
  static const TileConfig config;  // static: GCC does not know that all its bytes are read
  _tile_loadconfig(&config);
}

void close() { _tile_release(); }

void pack(const float* const* x, int64_t tokens, int64_t cols, uint16_t* panel) {
  for (int64_t k = 0; k < cols; k += kTileCols, panel += kPanelStep) {
    const int64_t count = cols - k < kTileCols ? cols - k : kTileCols;
    alignas(64) uint32_t pairs[kPanelTokens][kPanelTokens] = {};
    for (int64_t t = 0; t < tokens; ++t)
      round_to_bfloat16(x[t] + k, count, reinterpret_cast<uint16_t*>(pairs[t]));
    transpose(pairs);
    memcpy(panel, pairs, sizeof pairs);
  }
}

void pack_sums(const float* sums, int64_t rows, int64_t num_panels, uint16_t* panels,
               int64_t panel_stride) {
  for (int64_t i = 0; i < rows / kPanelTokens; ++i)
    for (int64_t p = 0; p < num_panels; ++p, sums += kSums) {
      uint16_t* out = panels + p * panel_stride + i * kSums;
      for (int64_t r = 0; r < kPanelTokens; r += 2) {
        uint16_t even[kPanelTokens], odd[kPanelTokens];
        round_to_bfloat16(sums + r * kPanelTokens, kPanelTokens, even);
        round_to_bfloat16(sums + (r + 1) * kPanelTokens, kPanelTokens, odd);
        for (int t = 0; t < kPanelTokens; ++t, out += 2) {
          out[0] = even[t];
          out[1] = odd[t];
        }
      }
    }
}

void multiply(const TileProduct& call) {
  for (int64_t p = 0; p < call.num_panels; p += 2) multiply_pass(call, p, Pace());
}

void add(const float* sums, int64_t sums_stride, int64_t rows, int64_t tokens, const float* weights,
         float* const* y) {
  for (int64_t r = 0; r < rows; r += kPanelTokens, sums += sums_stride) {
    alignas(64) uint32_t bits[kPanelTokens][kPanelTokens];
    memcpy(bits, sums, sizeof bits);
    transpose(bits);
    alignas(64) float parts[kPanelTokens][kPanelTokens];
    memcpy(parts, bits, sizeof bits);
    const int64_t count = rows - r < kPanelTokens ? rows - r : kPanelTokens;
    for (int64_t t = 0; t < tokens; ++t) {
      float* out = y[t] + r;
      if (count == kPanelTokens) {  // a constant length becomes one vector
        for (int i = 0; i < kPanelTokens; ++i) out[i] += weights[t] * parts[t][i];
      } else {
        for (int64_t i = 0; i < count; ++i) out[i] += weights[t] * parts[t][i];
      }
    }
  }
}

const TileKernel kKernel = {open, close, pack, pack_sums, multiply, add};

}  // namespace
}  // namespace hk2
