// Many tokens at once on AVX-512 VNNI: a vector lane is a token, so nothing is reduced across
// lanes.
//
// The activations of 16 tokens are transposed, a chunk of columns at a time (it stays in L1), so
// that one vector holds the same four columns of all of them. Four codes of a weight row,
// broadcast, meet it in one vpdpbusd; a group of 32 weights then costs four more instructions for
// 16 tokens. Four rows go together, to load the activations once for them.
#pragma once

#include "decode.h"

namespace hk2 {
namespace {

constexpr int kChunkUnits = 4;  // 1024 columns: 16 KB of transposed codes

template <class Format>
class TiledKernel {
 public:
  static constexpr int kLanes = 16, kMinTokens = kSameBits + 1;

  static void multiply(const Multiply& call) {
    multiply_in_tiles<QuantisedRow<Format>, TiledKernel>(call);
  }

  static void multiply_tile(const Multiply& call) {
    const int tokens = static_cast<int>(call.tokens < kLanes ? call.tokens : kLanes);
    const int64_t units = (call.cols + kUnit - 1) / kUnit;
    Chunk chunk;
    __m512 total[kRowBlock];
    for (int64_t r = 0; r < call.rows; ++r) total[r] = _mm512_setzero_ps();
    for (int64_t u = 0; u < units; u += kChunkUnits) {
      const int count = static_cast<int>(units - u < kChunkUnits ? units - u : kChunkUnits);
      transpose_activations(call.x, tokens, u, count, chunk);
      int64_t r = 0;
      for (; r + 4 <= call.rows; r += 4) add_rows<4>(call, chunk, r, u, count, total + r);
      for (; r < call.rows; ++r) add_rows<1>(call, chunk, r, u, count, total + r);
    }
    for (int64_t r = 0; r < call.rows; ++r) {
      alignas(64) float lanes[kLanes];
      _mm512_store_ps(lanes, total[r]);
      for (int t = 0; t < tokens; ++t) call.y[t * call.y_stride + r] = lanes[t];
    }
  }

 private:
  static constexpr int kGroups = kUnit / Format::kGroup;  // per unit
  static constexpr int kUnitBytes = kUnit / Format::kBlock * Format::kBlockBytes;

  // Activations of 16 tokens and one chunk of columns.
  struct Chunk {
    __m512i codes[kChunkUnits * kUnit / 4];  // [columns / 4] four columns of each token
    __m512i
        scales[kChunkUnits * 8 + 8];  // [blocks of 32] float; rounded up to whole transpositions
    __m512i sums[kChunkUnits * kGroups + 8];  // [groups] float
  };

  struct UnpackedRow {
    __m512i codes[4];
    alignas(64) float scales[16];
    alignas(64) float mins[16];
  };

  // Where the scale of a group lies in Unit::scales.
  static constexpr int lane_of_group(int g) {
    return Format::kGroup == 16 ? 4 * (g % 4) + g / 4 : g / 2 + 8 * (g % 2);
  }

  template <int R>
  static HK2_INLINE void add_rows(const Multiply& call, const Chunk& chunk, int64_t first,
                                  int64_t unit, int count, __m512* total) {
    __m512 sum[R];
    for (int i = 0; i < R; ++i) sum[i] = total[i];
    for (int c = 0; c < count; ++c) {
      UnpackedRow rows[R];
      for (int i = 0; i < R; ++i) {
        const uint8_t* row = call.weights + (first + i) * call.row_bytes;
        unpack(row, unit + c, call.cols, rows[i]);
        // The next chunk of this row is read after a pass over all rows: far enough ahead.
        prefetch(row + (unit + c + kChunkUnits) * kUnitBytes, kUnitBytes);
      }
      for (int g = 0; g < kGroups; ++g) {
        const __m512i* codes = chunk.codes + (c * kUnit + g * Format::kGroup) / 4;
        __m512i product[R];
        for (int i = 0; i < R; ++i) product[i] = _mm512_setzero_si512();
        for (int q = 0; q < Format::kGroup / 4; ++q)
          for (int i = 0; i < R; ++i) {
            int32_t four;
            memcpy(&four,
                   reinterpret_cast<const uint8_t*>(rows[i].codes) + g * Format::kGroup + 4 * q, 4);
            product[i] = _mm512_dpbusd_epi32(product[i], _mm512_set1_epi32(four), codes[q]);
          }
        const __m512 scales = _mm512_castsi512_ps(chunk.scales[c * 8 + g * Format::kGroup / 32]);
        const __m512 sums = _mm512_castsi512_ps(chunk.sums[c * kGroups + g]);
        for (int i = 0; i < R; ++i) {
          const __m512 scale =
              _mm512_mul_ps(scales, _mm512_set1_ps(rows[i].scales[lane_of_group(g)]));
          sum[i] = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(product[i]), sum[i]);
          sum[i] = _mm512_fnmadd_ps(sums, _mm512_set1_ps(rows[i].mins[g]), sum[i]);
        }
      }
    }
    for (int i = 0; i < R; ++i) total[i] = sum[i];
  }

  static HK2_INLINE void unpack(const uint8_t* row, int64_t unit, int64_t cols, UnpackedRow& out) {
    alignas(64) uint8_t tail[kUnitBytes];
    const bool whole = (unit + 1) * kUnit <= cols;
    const uint8_t* bytes = whole ? row + unit * kUnitBytes : last_unit<Format>(row, cols, tail);
    const Unit w = Format::load(bytes);
    for (int j = 0; j < 4; ++j) out.codes[j] = w.codes[j];
    _mm512_store_ps(out.scales, w.scales);
    _mm512_store_ps(out.mins, _mm512_mul_ps(w.mins, _mm512_set1_ps(Format::kMinFactor)));
  }

  static void transpose_activations(const ActivationRow* x, int tokens, int64_t unit, int count,
                                    Chunk& out) {
    const void* source[kLanes];
    for (int t = 0; t < kLanes; ++t) source[t] = x[t < tokens ? t : 0].codes + unit * kUnit;
    transpose(source, tokens, count * kUnit / 64, out.codes);
    for (int t = 0; t < kLanes; ++t) source[t] = x[t < tokens ? t : 0].scales + unit * 8;
    transpose(source, tokens, (count * 8 + 15) / 16, out.scales);
    for (int t = 0; t < kLanes; ++t)
      source[t] = Format::kGroup == 16 ? x[t < tokens ? t : 0].half_sums + unit * 16
                                       : x[t < tokens ? t : 0].sums + unit * 8;
    transpose(source, tokens, (count * kGroups + 15) / 16, out.sums);
  }

  // out[16 b + i] = 32-bit element 16 b + i of each of the 16 sources; zero for those beyond
  // `tokens`.
  static void transpose(const void* const source[kLanes], int tokens, int blocks, __m512i* out) {
    for (int b = 0; b < blocks; ++b, out += kLanes) {
      __m512i a[kLanes], c[kLanes];
      for (int t = 0; t < kLanes; ++t)
        a[t] = t < tokens ? _mm512_loadu_si512(static_cast<const uint8_t*>(source[t]) + 64 * b)
                          : _mm512_setzero_si512();
      for (int t = 0; t < kLanes; t += 2) {
        c[t] = _mm512_unpacklo_epi32(a[t], a[t + 1]);
        c[t + 1] = _mm512_unpackhi_epi32(a[t], a[t + 1]);
      }
      for (int t = 0; t < kLanes; t += 4)
        for (int i = 0; i < 2; ++i) {
          a[t + 2 * i] = _mm512_unpacklo_epi64(c[t + i], c[t + i + 2]);
          a[t + 2 * i + 1] = _mm512_unpackhi_epi64(c[t + i], c[t + i + 2]);
        }
      // Now 128-bit lane l of a[4 j + i] is element 4 l + i of tokens 4 j .. 4 j + 3.
      for (int i = 0; i < 4; ++i) {
        const __m512i low01 = _mm512_shuffle_i32x4(a[i], a[4 + i], 0x44);
        const __m512i low23 = _mm512_shuffle_i32x4(a[i], a[4 + i], 0xee);
        const __m512i high01 = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0x44);
        const __m512i high23 = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0xee);
        out[i] = _mm512_shuffle_i32x4(low01, high01, 0x88);
        out[4 + i] = _mm512_shuffle_i32x4(low01, high01, 0xdd);
        out[8 + i] = _mm512_shuffle_i32x4(low23, high23, 0x88);
        out[12 + i] = _mm512_shuffle_i32x4(low23, high23, 0xdd);
      }
    }
  }
};

}  // namespace
}  // namespace hk2
