// Many tokens at once on a SIMD tier: a vector lane is a token, so nothing is reduced across lanes,
// and a scale is loaded once for all of them.
//
// The activations of a tile of tokens are transposed, a chunk of columns at a time (it stays in
// L1), so that one vector holds the same four columns of all of them. Four codes of a weight row,
// broadcast, meet it in one multiplication. Several rows go together, to load the activations once
// for them and because the sum of one row is a chain of instructions that wait for each other.
#pragma once

#include "units.h"

namespace hk2 {
namespace {

constexpr int kChunkUnits = 4;  // 1024 columns: 1 KB of transposed codes a token

// Row: for the tokens that fill no tile. Lanes: what the instruction set decides.
//   kLanes, kMinTokens    see multiply_in_tiles
//   kRows                 that go together
//   Ints, Floats          vectors of kLanes elements
//   kStep                 columns of one multiply(), a multiple of 4
//   UnpackedRow           one unit of a row: scale(group), min(group), start(group), where the
//                         group's sum of products begins
//   unpack(bytes, out)    from a unit's bytes
//   prepare(codes)        of the activations, as multiply() wants them
//   multiply(row, at, x, sum)
//                         sum and the products of kStep columns of an unpacked row from `at`
//   add(sum, product, scales, scale, sums, min)
//                         sum + scales * scale * product - sums * min
//   transpose(source, tokens, blocks, out)
//                         out[kLanes b + i] = 32-bit element kLanes b + i of each of the kLanes
//                         sources; zero for those beyond `tokens`
template <class Format, class Row, class Lanes>
class TiledKernel {
 public:
  static constexpr int kLanes = Lanes::kLanes, kMinTokens = Lanes::kMinTokens;

  static void multiply(const Multiply& call) { multiply_in_tiles<Row, TiledKernel>(call); }

  static void multiply_tile(const Multiply& call) {
    const int tokens = static_cast<int>(call.tokens < kLanes ? call.tokens : kLanes);
    const int64_t units = (call.cols + kUnit - 1) / kUnit;
    Chunk chunk;
    Floats total[kRowBlock];
    for (int64_t r = 0; r < call.rows; ++r) total[r] = Floats{};
    for (int64_t u = 0; u < units; u += kChunkUnits) {
      const int count = static_cast<int>(units - u < kChunkUnits ? units - u : kChunkUnits);
      transpose_activations(call.x, tokens, u, count, chunk);
      int64_t r = 0;
      for (; r + Lanes::kRows <= call.rows; r += Lanes::kRows)
        add_rows<Lanes::kRows>(call, chunk, r, u, count, total + r);
      for (; r < call.rows; ++r) add_rows<1>(call, chunk, r, u, count, total + r);
    }
    for (int64_t r = 0; r < call.rows; ++r) {
      float lanes[kLanes];
      memcpy(lanes, total + r, sizeof lanes);
      for (int t = 0; t < tokens; ++t) call.y[t * call.y_stride + r] = lanes[t];
    }
  }

 private:
  using Ints = typename Lanes::Ints;
  using Floats = typename Lanes::Floats;
  using UnpackedRow = typename Lanes::UnpackedRow;

  static constexpr int kGroups = kUnit / Format::kGroup;  // per unit
  static_assert(kChunkUnits * 8 % kLanes == 0, "a chunk's scales are transposed whole");

  // Activations of a tile's tokens and one chunk of columns.
  struct Chunk {
    Ints codes[kChunkUnits * kUnit / 4];  // [columns / 4] four columns of each token
    Ints scales[kChunkUnits * 8];         // [blocks of 32] float
    Ints sums[kChunkUnits * kGroups];     // [groups] float
  };

  template <int R>
  static HK2_INLINE void add_rows(const Multiply& call, const Chunk& chunk, int64_t first,
                                  int64_t unit, int count, Floats* total) {
    constexpr int kBytes = kUnitBytes<Format>;
    Floats sum[R];
    for (int i = 0; i < R; ++i) sum[i] = total[i];
    for (int c = 0; c < count; ++c) {
      UnpackedRow rows[R];
      for (int i = 0; i < R; ++i) {
        const uint8_t* row = call.weights + (first + i) * call.row_bytes;
        unpack(row, unit + c, call.cols, rows[i]);
        // The next chunk of this row is read after a pass over all rows: far enough ahead.
        prefetch(row + (unit + c + kChunkUnits) * kBytes, kBytes);
      }
      for (int g = 0; g < kGroups; ++g) {
        const int begin = g * Format::kGroup;
        const Ints* codes = chunk.codes + (c * kUnit + begin) / 4;
        Ints product[R];
        for (int i = 0; i < R; ++i) product[i] = rows[i].start(g);
        for (int at = 0; at < Format::kGroup; at += Lanes::kStep)
          for (int i = 0; i < R; ++i)
            product[i] = Lanes::multiply(rows[i], begin + at, codes + at / 4, product[i]);
        const Ints scales = chunk.scales[c * 8 + begin / 32], sums = chunk.sums[c * kGroups + g];
        for (int i = 0; i < R; ++i)
          sum[i] = Lanes::add(sum[i], product[i], scales, rows[i].scale(g), sums, rows[i].min(g));
      }
    }
    for (int i = 0; i < R; ++i) total[i] = sum[i];
  }

  static HK2_INLINE void unpack(const uint8_t* row, int64_t unit, int64_t cols, UnpackedRow& out) {
    alignas(64) uint8_t tail[kUnitBytes<Format>];
    const bool whole = (unit + 1) * kUnit <= cols;
    Lanes::unpack(whole ? row + unit * kUnitBytes<Format> : last_unit<Format>(row, cols, tail),
                  out);
  }

  static void transpose_activations(const ActivationRow* x, int tokens, int64_t unit, int count,
                                    Chunk& out) {
    // Sources beyond `tokens` are not read.
    const void *codes[kLanes], *scales[kLanes], *sums[kLanes];
    for (int t = 0; t < tokens; ++t) {
      codes[t] = x[t].codes + unit * kUnit;
      scales[t] = x[t].scales + unit * 8;
      sums[t] = Format::kGroup == 16 ? x[t].half_sums + unit * 16 : x[t].sums + unit * 8;
    }
    Lanes::transpose(codes, tokens, blocks(count * kUnit / 4), out.codes);
    for (int i = 0; i < count * kUnit / 4; ++i) out.codes[i] = Lanes::prepare(out.codes[i]);
    Lanes::transpose(scales, tokens, blocks(count * 8), out.scales);
    Lanes::transpose(sums, tokens, blocks(count * kGroups), out.sums);
  }

  static constexpr int blocks(int elements) { return (elements + kLanes - 1) / kLanes; }
};

}  // namespace
}  // namespace hk2
