// How the SIMD tiers walk a matrix: the loops over rows and tokens. Everything here has internal
// linkage, so each kernel object gets its own copy, compiled for its own tier.
//
// One row against up to four tokens at a time, so weights are unpacked once for all of them. With
// many tokens a group of rows stays in L2 while the tiles of tokens pass over it, so weights come
// from memory once. While row r is read, the same offsets of a row `kAhead` bytes further are
// prefetched: beyond the last row, those of `next`.
#pragma once

#include <stdint.h>
#include <string.h>

#include "hk2/kernels.h"
#include "hk2/quant_blocks.h"

#define HK2_INLINE inline __attribute__((always_inline))

namespace hk2 {
namespace {

constexpr int kTile = 4;                // tokens that share one unpacking
constexpr int64_t kAhead = 4096;        // prefetch distance in bytes, rounded up to rows
constexpr int64_t kGroupBytes = 65536;  // rows kept in L2 while the tiles of tokens pass

HK2_INLINE void prefetch(const uint8_t* address, int bytes) {
  for (int offset = 0; offset < bytes; offset += 64) __builtin_prefetch(address + offset, 0, 3);
}

// Row: `template <int N> static void dot(const uint8_t* row, const uint8_t* ahead, int64_t cols,
//                                        const ActivationRow* x, float* y, int64_t y_stride)` for N
//                                        tokens.
template <class Row, int N>
void rows_by_tile(const Multiply& call, int64_t begin, int64_t end, int64_t token) {
  const int64_t ahead = (kAhead + call.row_bytes - 1) / call.row_bytes;
  for (int64_t r = begin; r < end; ++r) {
    const uint8_t* row = call.weights + r * call.row_bytes;
    const uint8_t* later = row + ahead * call.row_bytes;
    if (call.next && r + ahead >= call.rows)
      later = call.next + (r + ahead - call.rows) * call.row_bytes;
    Row::template dot<N>(row, later, call.cols, call.x + token, call.y + token * call.y_stride + r,
                         call.y_stride);
  }
}

template <class Row>
void multiply(const Multiply& call) {
  int64_t group = call.rows;
  if (call.tokens > kTile) {
    group = kGroupBytes / call.row_bytes;
    if (group < 1) group = 1;
  }
  for (int64_t begin = 0; begin < call.rows; begin += group) {
    const int64_t end = call.rows - begin < group ? call.rows : begin + group;
    int64_t t = 0;
    for (; t + 4 <= call.tokens; t += 4) rows_by_tile<Row, 4>(call, begin, end, t);
    if (call.tokens - t == 3) rows_by_tile<Row, 3>(call, begin, end, t);
    if (call.tokens - t == 2) rows_by_tile<Row, 2>(call, begin, end, t);
    if (call.tokens - t == 1) rows_by_tile<Row, 1>(call, begin, end, t);
  }
}

constexpr int64_t kRowBlock = 128;  // rows that meet the activations of a tile; they stay in L2

// Tile: its lanes are tokens. `kLanes`, `kMinTokens` (fewer are faster in the row kernel), and
// `static void multiply_tile(const Multiply&)` for at most kRowBlock rows.
template <class Row, class Tile>
void multiply_in_tiles(const Multiply& call) {
  if (call.tokens <= kSameBits) return multiply<Row>(call);
  for (int64_t begin = 0; begin < call.rows; begin += kRowBlock) {
    Multiply part = call;
    part.weights += begin * call.row_bytes;
    part.y += begin;
    part.rows = call.rows - begin < kRowBlock ? call.rows - begin : kRowBlock;
    if (begin + part.rows < call.rows) part.next = part.weights + part.rows * call.row_bytes;
    for (; part.tokens >= Tile::kMinTokens; part.tokens -= Tile::kLanes) {
      Tile::multiply_tile(part);
      part.x += Tile::kLanes;
      part.y += Tile::kLanes * part.y_stride;
    }
    if (part.tokens > 0) multiply<Row>(part);
  }
}

}  // namespace
}  // namespace hk2

// The object's one exported symbol; the members of its Kernel in order.
#define HK2_EXPORT(tier, quant, ...)    \
  namespace hk2 {                       \
  namespace {                           \
  const Kernel kKernel = {__VA_ARGS__}; \
  }                                     \
  }                                     \
  extern "C" const hk2::Kernel* hk2_##tier##_##quant() { return &hk2::kKernel; }
