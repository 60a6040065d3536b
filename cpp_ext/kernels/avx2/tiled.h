// Many tokens at once on AVX2: a vector lane is a token, as in avx512_vnni/tiled.h, so nothing is
// reduced across lanes and a scale is loaded once for eight tokens.
//
// The activations of eight tokens are transposed, a chunk of columns at a time (it stays in L1), so
// that one vector holds the same four columns of all of them. Four codes of a weight row,
// broadcast, meet it in one vpmaddubsw.
#pragma once

#include "quantised.h"

namespace hk2 {
namespace {

constexpr int kChunkUnits = 4;  // 1024 columns: 8 KB of transposed codes

template <class Format>
class TiledKernel {
 public:
  static constexpr int kLanes = 8, kMinTokens = 5;

  static void multiply(const Multiply& call) {
    multiply_in_tiles<QuantisedRow<Format>, TiledKernel>(call);
  }

  static void multiply_tile(const Multiply& call) {
    const int tokens = static_cast<int>(call.tokens < kLanes ? call.tokens : kLanes);
    const int64_t units = (call.cols + kUnit - 1) / kUnit;
    Chunk chunk;
    __m256 total[kRowBlock];
    for (int64_t r = 0; r < call.rows; ++r) total[r] = _mm256_setzero_ps();
    for (int64_t u = 0; u < units; u += kChunkUnits) {
      const int count = static_cast<int>(units - u < kChunkUnits ? units - u : kChunkUnits);
      transpose_activations(call.x, tokens, u, count, chunk);
      int64_t r = 0;
      for (; r + 4 <= call.rows; r += 4) add_rows<4>(call, chunk, r, u, count, total + r);
      for (; r < call.rows; ++r) add_rows<1>(call, chunk, r, u, count, total + r);
    }
    for (int64_t r = 0; r < call.rows; ++r) {
      alignas(32) float lanes[kLanes];
      _mm256_store_ps(lanes, total[r]);
      for (int t = 0; t < tokens; ++t) call.y[t * call.y_stride + r] = lanes[t];
    }
  }

 private:
  static constexpr int kGroups = kUnit / Format::kGroup;  // per unit
  static constexpr int kUnitBytes = kUnit / Format::kBlock * Format::kBlockBytes;

  // Activations of eight tokens and one chunk of columns.
  struct Chunk {
    __m256i codes[kChunkUnits * kUnit / 4];  // [columns / 4] four columns of each token
    __m256i scales[kChunkUnits * 8];         // [blocks of 32] float
    __m256i sums[kChunkUnits * kGroups];     // [groups] float
  };

  struct UnpackedRow {
    __m256i codes[8];
    __m256i magnitudes[Format::kSigned ? 8 : 1];  // unsigned codes are their own
    alignas(32) float scales[16];
    alignas(32) float mins[16];
  };

  template <int R>
  static HK2_INLINE void add_rows(const Multiply& call, const Chunk& chunk, int64_t first,
                                  int64_t unit, int count, __m256* total) {
    __m256 sum[R];
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
        const __m256i* codes = chunk.codes + (c * kUnit + g * Format::kGroup) / 4;
        __m256i product[R];
        for (int i = 0; i < R; ++i) product[i] = _mm256_setzero_si256();
        for (int q = 0; q < Format::kGroup / 4; q += 2)
          for (int i = 0; i < R; ++i)
            product[i] = _mm256_add_epi32(
                product[i], multiply_eight(rows[i], g * Format::kGroup + 4 * q, codes + q));
        const __m256 scales = _mm256_castsi256_ps(chunk.scales[c * 8 + g * Format::kGroup / 32]);
        const __m256 sums = _mm256_castsi256_ps(chunk.sums[c * kGroups + g]);
        for (int i = 0; i < R; ++i) {
          const __m256 scale = _mm256_mul_ps(scales, _mm256_broadcast_ss(rows[i].scales + g));
          sum[i] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(product[i]), sum[i]);
          sum[i] = _mm256_fnmadd_ps(sums, _mm256_broadcast_ss(rows[i].mins + g), sum[i]);
        }
      }
    }
    for (int i = 0; i < R; ++i) total[i] = sum[i];
  }

  // Eight columns from `at`, of eight tokens. Four products of unsigned codes (at most 63) fit 16
  // bits, of signed ones two.
  static HK2_INLINE __m256i multiply_eight(const UnpackedRow& row, int at, const __m256i* x) {
    const __m256i ones = _mm256_set1_epi16(1);
    if (!Format::kSigned)
      return _mm256_madd_epi16(
          _mm256_add_epi16(_mm256_maddubs_epi16(four(row.codes, at), x[0]),
                           _mm256_maddubs_epi16(four(row.codes, at + 4), x[1])),
          ones);
    __m256i products[2];
    for (int i = 0; i < 2; ++i) {
      const __m256i signed_x = _mm256_sign_epi8(x[i], four(row.codes, at + 4 * i));
      products[i] =
          _mm256_madd_epi16(_mm256_maddubs_epi16(four(row.magnitudes, at + 4 * i), signed_x), ones);
    }
    return _mm256_add_epi32(products[0], products[1]);
  }

  static HK2_INLINE __m256i four(const __m256i* codes, int at) {
    int32_t word;
    memcpy(&word, reinterpret_cast<const uint8_t*>(codes) + at, 4);
    return _mm256_set1_epi32(word);
  }

  static HK2_INLINE void unpack(const uint8_t* row, int64_t unit, int64_t cols, UnpackedRow& out) {
    alignas(64) uint8_t tail[kUnitBytes];
    const bool whole = (unit + 1) * kUnit <= cols;
    Unit w;
    Format::load(whole ? row + unit * kUnitBytes : last_unit<Format>(row, cols, tail), w);
    for (int b = 0; b < 8; ++b) out.codes[b] = w.codes[b];
    if (Format::kSigned)
      for (int b = 0; b < 8; ++b) out.magnitudes[b] = _mm256_abs_epi8(w.codes[b]);
    for (int i = 0; i < kGroups / 8; ++i) {
      _mm256_store_ps(out.scales + 8 * i, w.scales[i]);
      _mm256_store_ps(out.mins + 8 * i, w.mins[i]);
    }
  }

  static void transpose_activations(const ActivationRow* x, int tokens, int64_t unit, int count,
                                    Chunk& out) {
    const void* source[kLanes];
    for (int t = 0; t < kLanes; ++t) source[t] = x[t < tokens ? t : 0].codes + unit * kUnit;
    transpose(source, tokens, count * kUnit / 32, out.codes);
    for (int t = 0; t < kLanes; ++t) source[t] = x[t < tokens ? t : 0].scales + unit * 8;
    transpose(source, tokens, count, out.scales);
    for (int t = 0; t < kLanes; ++t)
      source[t] = Format::kGroup == 16 ? x[t < tokens ? t : 0].half_sums + unit * 16
                                       : x[t < tokens ? t : 0].sums + unit * 8;
    transpose(source, tokens, count * kGroups / 8, out.sums);
  }

  // out[8 b + i] = 32-bit element 8 b + i of each of the eight sources; zero for those beyond
  // `tokens`.
  static void transpose(const void* const source[kLanes], int tokens, int blocks, __m256i* out) {
    for (int b = 0; b < blocks; ++b, out += kLanes) {
      __m256i a[kLanes], c[kLanes];
      for (int t = 0; t < kLanes; ++t)
        a[t] = t < tokens ? load_32(static_cast<const uint8_t*>(source[t]) + 32 * b)
                          : _mm256_setzero_si256();
      for (int t = 0; t < kLanes; t += 2) {
        c[t] = _mm256_unpacklo_epi32(a[t], a[t + 1]);
        c[t + 1] = _mm256_unpackhi_epi32(a[t], a[t + 1]);
      }
      for (int t = 0; t < kLanes; t += 4)
        for (int i = 0; i < 2; ++i) {
          a[t + 2 * i] = _mm256_unpacklo_epi64(c[t + i], c[t + i + 2]);
          a[t + 2 * i + 1] = _mm256_unpackhi_epi64(c[t + i], c[t + i + 2]);
        }
      // Now 128-bit lane l of a[4 j + i] is element 4 l + i of tokens 4 j .. 4 j + 3.
      for (int i = 0; i < 4; ++i) {
        out[i] = _mm256_permute2x128_si256(a[i], a[4 + i], 0x20);
        out[4 + i] = _mm256_permute2x128_si256(a[i], a[4 + i], 0x31);
      }
    }
  }
};

}  // namespace
}  // namespace hk2
