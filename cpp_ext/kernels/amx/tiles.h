// Products of bfloat16 tiles, in terms of the AMX intrinsics and a transposition that the including
// object provides: the processor's (amx/tiles.cpp) or stand-ins in C (amx_emulated/tiles.cpp).
//
// 16 weight rows x 32 columns, as they lie, are the left operand; a panel of 16 tokens, whose pairs
// of columns are interleaved, is the right one. Two tiles of rows meet two panels, so four products
// cost four loads; the rows of one call stay in L1.
#pragma once

#include "../bfloat16.h"
#include "hk2/kernels.h"

namespace hk2 {
namespace {

constexpr int kTile = 16;                      // rows, or tokens
constexpr int kSums = kTile * kTile;           // in a tile
constexpr int kTileBytes = 64;                 // in a row of any tile
constexpr int kPanelStep = kTileCols * kTile;  // values in a panel's tile
static_assert(kPanelTokens == kTile && kTileRows == 2 * kTile, "two tiles of rows, one of tokens");

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
    alignas(64) uint32_t pairs[kTile][kTile] = {};
    for (int64_t t = 0; t < tokens; ++t)
      round_to_bfloat16(x[t] + k, count, reinterpret_cast<uint16_t*>(pairs[t]));
    transpose(pairs);
    memcpy(panel, pairs, sizeof pairs);
  }
}

void pack_sums(const float* sums, int64_t rows, int64_t num_panels, uint16_t* panels,
               int64_t panel_stride) {
  for (int64_t i = 0; i < rows / kTile; ++i)
    for (int64_t p = 0; p < num_panels; ++p, sums += kSums) {
      uint16_t* out = panels + p * panel_stride + i * kSums;
      for (int64_t r = 0; r < kTile; r += 2) {
        uint16_t even[kTile], odd[kTile];
        round_to_bfloat16(sums + r * kTile, kTile, even);
        round_to_bfloat16(sums + (r + 1) * kTile, kTile, odd);
        for (int t = 0; t < kTile; ++t, out += 2) {
          out[0] = even[t];
          out[1] = odd[t];
        }
      }
    }
}

void multiply_two(const TileProduct& call, int64_t p) {
  float* c = call.sums + p * kSums;
  float* d = c + call.num_panels * kSums;
  if (call.accumulate) {
    _tile_loadd(0, c, kTileBytes);
    _tile_loadd(1, c + kSums, kTileBytes);
    _tile_loadd(2, d, kTileBytes);
    _tile_loadd(3, d + kSums, kTileBytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  const uint16_t* panel = call.panels + p * call.panel_stride;
  for (int64_t k = 0; k < call.cols; k += kTileCols, panel += kPanelStep) {
    _tile_loadd(4, call.rows + k, kDecodeStride * 2);
    _tile_loadd(6, panel, kTileBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, panel + call.panel_stride, kTileBytes);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, call.rows + k + kTile * kDecodeStride, kDecodeStride * 2);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, kTileBytes);
  _tile_stored(1, c + kSums, kTileBytes);
  _tile_stored(2, d, kTileBytes);
  _tile_stored(3, d + kSums, kTileBytes);
}

void multiply_one(const TileProduct& call, int64_t p) {
  float* c = call.sums + p * kSums;
  float* d = c + call.num_panels * kSums;
  if (call.accumulate) {
    _tile_loadd(0, c, kTileBytes);
    _tile_loadd(2, d, kTileBytes);
  } else {
    _tile_zero(0);
    _tile_zero(2);
  }
  const uint16_t* panel = call.panels + p * call.panel_stride;
  for (int64_t k = 0; k < call.cols; k += kTileCols, panel += kPanelStep) {
    _tile_loadd(6, panel, kTileBytes);
    _tile_loadd(4, call.rows + k, kDecodeStride * 2);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, call.rows + k + kTile * kDecodeStride, kDecodeStride * 2);
    _tile_dpbf16ps(2, 5, 6);
  }
  _tile_stored(0, c, kTileBytes);
  _tile_stored(2, d, kTileBytes);
}

void multiply(const TileProduct& call) {
  int64_t p = 0;
  for (; p + 2 <= call.num_panels; p += 2) multiply_two(call, p);
  if (p < call.num_panels) multiply_one(call, p);
}

void add(const float* sums, int64_t sums_stride, int64_t rows, int64_t tokens, const float* weights,
         float* const* y) {
  for (int64_t r = 0; r < rows; r += kTile, sums += sums_stride) {
    alignas(64) uint32_t bits[kTile][kTile];
    memcpy(bits, sums, sizeof bits);
    transpose(bits);
    alignas(64) float parts[kTile][kTile];
    memcpy(parts, bits, sizeof bits);
    const int64_t count = rows - r < kTile ? rows - r : kTile;
    for (int64_t t = 0; t < tokens; ++t) {
      float* out = y[t] + r;
      if (count == kTile) {  // a constant length becomes one vector
        for (int i = 0; i < kTile; ++i) out[i] += weights[t] * parts[t][i];
      } else {
        for (int64_t i = 0; i < count; ++i) out[i] += weights[t] * parts[t][i];
      }
    }
  }
}

const TileKernel kKernel = {open, close, pack, pack_sums, multiply, add};

}  // namespace
}  // namespace hk2
