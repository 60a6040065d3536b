// The loops over tiles, in terms of the AMX intrinsics.
//
// 16 weight rows x 32 columns are the left operand; a panel of 16 tokens, whose pairs of columns
// are interleaved, is the right one. Two tiles of rows meet two panels, so four products cost four
// loads; the rows of one call stay in L1.
#pragma once

#include "hk2/kernels.h"

namespace hk2 {
namespace {

constexpr int kSums = kPanelTokens * kPanelTokens;    // in a tile
constexpr int kTileBytes = 64;                        // in a row of any tile
constexpr int kPanelStep = kTileCols * kPanelTokens;  // values in a panel's tile, or one of rows
static_assert(kPanelTokens == 16 && kTileRows == 32, "two tiles of rows, one of tokens");

// Keeps two instructions on tiles apart. A core of Sapphire Rapids is often in a state where each
// takes 21 cycles, instead of 8 for a load and 16 for a product that overlap, but 33 where fewer
// than eight other instructions lie between: then these cost nothing.
inline void pace() {
#if defined(__AMX_TILE__)
  __asm__ volatile("nop; nop; nop; nop; nop; nop; nop; nop");
#endif
}

// What is done between the instructions on tiles: nothing.
struct Pace {
  void step() {}
  void operator()(int) { pace(); }
};

// Panels p and p + 1. between.step() begins every step of 32 columns, between(0) .. between(7)
// follow its instructions.
template <class Between>
inline void multiply_two(const TileProduct& call, int64_t p, Between& between) {
  float* c = call.sums + p * kSums;
  float* d = c + call.num_panels * kSums;
  if (call.accumulate) {
    _tile_loadd(0, c, kTileBytes);
    pace();
    _tile_loadd(1, c + kSums, kTileBytes);
    pace();
    _tile_loadd(2, d, kTileBytes);
    pace();
    _tile_loadd(3, d + kSums, kTileBytes);
    pace();
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  const uint16_t* panel = call.panels + p * call.panel_stride;
  const uint16_t* rows = call.rows;
  for (int64_t k = 0; k < call.cols; k += kTileCols, panel += kPanelStep, rows += 2 * kPanelStep) {
    between.step();
    _tile_loadd(4, rows, kTileBytes);
    between(0);
    _tile_loadd(6, panel, kTileBytes);
    between(1);
    _tile_dpbf16ps(0, 4, 6);
    between(2);
    _tile_loadd(7, panel + call.panel_stride, kTileBytes);
    between(3);
    _tile_dpbf16ps(1, 4, 7);
    between(4);
    _tile_loadd(5, rows + kPanelStep, kTileBytes);
    between(5);
    _tile_dpbf16ps(2, 5, 6);
    between(6);
    _tile_dpbf16ps(3, 5, 7);
    between(7);
  }
  _tile_stored(0, c, kTileBytes);
  pace();
  _tile_stored(1, c + kSums, kTileBytes);
  pace();
  _tile_stored(2, d, kTileBytes);
  pace();
  _tile_stored(3, d + kSums, kTileBytes);
  pace();
}

// Panel p alone.
template <class Between>
inline void multiply_one(const TileProduct& call, int64_t p, Between& between) {
  float* c = call.sums + p * kSums;
  float* d = c + call.num_panels * kSums;
  if (call.accumulate) {
    _tile_loadd(0, c, kTileBytes);
    pace();
    _tile_loadd(2, d, kTileBytes);
    pace();
  } else {
    _tile_zero(0);
    _tile_zero(2);
  }
  const uint16_t* panel = call.panels + p * call.panel_stride;
  const uint16_t* rows = call.rows;
  for (int64_t k = 0; k < call.cols; k += kTileCols, panel += kPanelStep, rows += 2 * kPanelStep) {
    between.step();
    _tile_loadd(6, panel, kTileBytes);
    between(0);
    between(1);
    _tile_loadd(4, rows, kTileBytes);
    between(2);
    between(3);
    _tile_dpbf16ps(0, 4, 6);
    between(4);
    between(5);
    _tile_loadd(5, rows + kPanelStep, kTileBytes);
    between(6);
    _tile_dpbf16ps(2, 5, 6);
    between(7);
  }
  _tile_stored(0, c, kTileBytes);
  pace();
  _tile_stored(2, d, kTileBytes);
  pace();
}

// One panel or two, from p on.
template <class Between>
inline void multiply_pass(const TileProduct& call, int64_t p, Between between) {
  if (p + 2 <= call.num_panels) {
    multiply_two(call, p, between);
  } else {
    multiply_one(call, p, between);
  }
}

}  // namespace
}  // namespace hk2
