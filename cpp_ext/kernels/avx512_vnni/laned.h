// One row against up to four tokens where a group of 32 weights lies in one 64-bit lane of all four
// vectors of a unit: then its products are summed by accumulating, and nothing moves across lanes.
//
// Formats whose runs of weights are looked up can choose the order of their codes, so they take
// this one; the activations are brought into the same order once for all rows of a call.
#pragma once

#include "runs.h"

namespace hk2 {
namespace {

// 256 codes: byte b of lane g of vector j is a weight of group g, which Order says.
struct LanedUnit {
  __m512i codes[4];
  __m512 scales[2];  // of each half of a lane; [1] for vectors 2 and 3 where those have their own
  __mmask16 plus;    // kShift: groups whose codes are that much too small
};

// byte 8 j + i of a group is byte i of its lane in vector j
struct ByRun8 {
  static constexpr bool kHalvesByVector = true;  // the first 16 weights are in vectors 0 and 1

  static HK2_INLINE __m512i indices(__m512i words, int j) {
    return _mm512_and_si512(_mm512_srli_epi64(words, 16u * static_cast<unsigned>(j)),
                            _mm512_set1_epi64(0xffff));
  }
  // Word j of each lane: two indices, one in each half.
  static HK2_INLINE __m512i byte_indices(__m512i bytes, int j) {
    const int at = ~0xff | 2 * j;  // and three zeros
    return _mm512_shuffle_epi8(bytes, _mm512_set4_epi32(at + 9, at + 8, at + 1, at));
  }
  // Word j: byte j of each group's four.
  static HK2_INLINE __m256i signs(__m256i bits) {
    const __m128i bytes = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    bits = _mm256_shuffle_epi8(bits, _mm256_broadcastsi128_si256(bytes));
    return _mm256_permutevar8x32_epi32(bits, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  }
  static HK2_INLINE __m512i to_lanes(__m512i natural) {
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), natural);
  }
  static HK2_INLINE __m512i to_natural(__m512i lanes) {
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), lanes);
  }
};

// byte 4 b + j of a group is byte b of its lane in vector j
struct ByQuarter {
  static constexpr bool kHalvesByVector = false;  // the first 16 weights are the lower bytes

  static HK2_INLINE __m512i to_lanes(__m512i natural) {
    return transpose_dwords(transpose_bytes(natural));
  }
  static HK2_INLINE __m512i to_natural(__m512i lanes) {
    return transpose_bytes(transpose_dwords(lanes));
  }

 private:
  static HK2_INLINE __m512i transpose_bytes(__m512i v) {
    return _mm512_shuffle_epi8(v,
                               _mm512_set4_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400));
  }
  static HK2_INLINE __m512i transpose_dwords(__m512i v) {
    return _mm512_permutexvar_epi32(
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), v);
  }
};

// byte 8 b + 4 h + j of a group is byte 4 h + b of its lane in vector j
struct ByHalfRun {
  static constexpr bool kHalvesByVector = false;

  static HK2_INLINE __m512i to_lanes(__m512i natural) {
    return in_order(ByQuarter::to_lanes(natural),
                    _mm512_set4_epi32(0x0f0d0b09, 0x0e0c0a08, 0x07050301, 0x06040200));
  }
  static HK2_INLINE __m512i to_natural(__m512i lanes) {
    return ByQuarter::to_natural(
        in_order(lanes, _mm512_set4_epi32(0x0f0b0e0a, 0x0d090c08, 0x07030602, 0x05010400)));
  }

 private:
  static HK2_INLINE __m512i in_order(__m512i v, __m512i order) {
    return _mm512_shuffle_epi8(v, order);
  }
};

// 128-bit lane i of out[j] = 128-bit lane j of in[i].
HK2_INLINE void transpose_lanes(const __m512i in[4], __m512i out[4]) {
  const __m512i low01 = _mm512_shuffle_i32x4(in[0], in[1], 0x44);
  const __m512i low23 = _mm512_shuffle_i32x4(in[2], in[3], 0x44);
  const __m512i high01 = _mm512_shuffle_i32x4(in[0], in[1], 0xee);
  const __m512i high23 = _mm512_shuffle_i32x4(in[2], in[3], 0xee);
  out[0] = _mm512_shuffle_i32x4(low01, low23, 0x88);
  out[1] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
  out[2] = _mm512_shuffle_i32x4(high01, high23, 0x88);
  out[3] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
}

// Each of eight words, twice.
HK2_INLINE __m512i twice_each(__m256i words) {
  const __m512i index = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  return _mm512_permutexvar_epi32(index, _mm512_castsi256_si512(words));
}

HK2_INLINE __m512 broadcast_scale(uint16_t half) {
  return _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<short>(half)));
}

// The scales of IQ2_XS and IQ2_S: a byte has the steps of groups 2 g and 2 g + 1.
template <class Order>
HK2_INLINE void set_scales_of_bytes(LanedUnit& w, const uint8_t* bytes, uint16_t half) {
  const __m512i steps = low_twice(_mm512_cvtepu8_epi64(load_8(bytes)));
  const __m512 d = broadcast_scale(half);
  if (Order::kHalvesByVector) {
    w.scales[0] = odd_scales(steps, 0, 15, d);
    w.scales[1] = odd_scales(steps, 4, 15, d);
  } else {
    w.scales[0] = odd_scales(_mm512_srlv_epi32(steps, _mm512_set1_epi64(4ll << 32)), 0, 15, d);
  }
}

HK2_INLINE void set_scales_of_nibbles(LanedUnit& w, const BlockIQ3_S& block) {
  uint32_t nibbles;
  memcpy(&nibbles, block.scales, 4);
  const __m512i steps = _mm512_srlv_epi32(
      _mm512_set1_epi32(static_cast<int>(nibbles)),
      _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28));
  w.scales[0] = odd_scales(steps, 0, 15, broadcast_scale(block.d));
}

template <class Format>
constexpr bool kTwoScales = Format::kGroup == 16 && Format::Order::kHalvesByVector;

// Format: kGroup (16 or 32), kOffset (a code less this is the weight's), kShift (0: there are no
// shifts), kFactor (of all scales), Order, and `static LanedUnit load_lanes(const uint8_t*)` for a
// block, which is a unit; with kInPairs `static void load_lanes(const uint8_t*, const uint8_t*,
// LanedUnit[2])` for two.
template <class Format>
HK2_INLINE LanedUnit load_one(const uint8_t* block) {
  if constexpr (Format::kInPairs) {
    LanedUnit w[2];
    Format::load_lanes(block, block, w);
    return w[0];
  } else {
    return Format::load_lanes(block);
  }
}

template <class Format>
class LanedRows {
 public:
  static void multiply(const Multiply& call) {
    Multiply part = call;
    for (; part.tokens >= kTile; part.tokens -= kTile) {
      multiply_tile<kTile>(part);
      part.x += kTile;
      part.y += kTile * part.y_stride;
    }
    if (part.tokens == 3) multiply_tile<3>(part);
    if (part.tokens == 2) multiply_tile<2>(part);
    if (part.tokens == 1) multiply_tile<1>(part);
  }

 private:
  static constexpr int kSums = kTwoScales<Format> ? 2 : 1;
  static constexpr int kChunk = 28;  // units: 7168 columns, 44 KB for four tokens

  // A unit of a token's activations.
  struct Prepared {
    __m512i codes[4];
    __m512i offsets[2];  // int32: -kOffset times the sum of the codes that meet in a lane; with
                         // kShift [1] is for codes that much too small
    __m512 scales;
  };

  template <int N>
  static void multiply_tile(const Multiply& call) {
    Prepared x[kChunk][N];
    const int64_t units = call.cols / kUnit;
    const int64_t ahead = (kAhead + call.row_bytes - 1) / call.row_bytes;
    for (int64_t begin = 0; begin < units; begin += kChunk) {
      const int count = static_cast<int>(units - begin < kChunk ? units - begin : kChunk);
      for (int u = 0; u < count; ++u)
        for (int i = 0; i < N; ++i) prepare(call.x[i], begin + u, x[u][i]);
      for (int64_t r = 0; r < call.rows; ++r) {
        const uint8_t* row = call.weights + r * call.row_bytes + begin * Format::kBlockBytes;
        const uint8_t* later = row + ahead * call.row_bytes;
        if (call.next && r + ahead >= call.rows)
          later =
              call.next + (r + ahead - call.rows) * call.row_bytes + begin * Format::kBlockBytes;
        __m512 sum[N];
        for (int i = 0; i < N; ++i) sum[i] = _mm512_setzero_ps();
        int u = 0;
        if constexpr (Format::kInPairs) {
          for (; u + 2 <= count; u += 2) {
            prefetch(later + u * Format::kBlockBytes, 2 * Format::kBlockBytes);
            const uint8_t* block = row + u * Format::kBlockBytes;
            LanedUnit w[2];
            Format::load_lanes(block, block + Format::kBlockBytes, w);
            for (int i = 0; i < N; ++i) {
              add(w[0], x[u][i], sum[i]);
              add(w[1], x[u + 1][i], sum[i]);
            }
          }
        }
        for (; u < count; ++u) {
          prefetch(later + u * Format::kBlockBytes, Format::kBlockBytes);
          const LanedUnit w = load_one<Format>(row + u * Format::kBlockBytes);
          for (int i = 0; i < N; ++i) add(w, x[u][i], sum[i]);
        }
        for (int i = 0; i < N; ++i) {
          float* y = call.y + i * call.y_stride + r;
          *y = _mm512_reduce_add_ps(sum[i]) + (begin ? *y : 0);
        }
      }
    }
  }

  static HK2_INLINE void add(const LanedUnit& w, const Prepared& x, __m512& sum) {
    __m512i p[kSums];
    p[0] = x.offsets[0];
    if (Format::kShift) p[0] = _mm512_mask_mov_epi32(p[0], w.plus, x.offsets[1]);
    if (kSums == 2) p[kSums - 1] = x.offsets[kSums - 1];
    for (int j = 0; j < 4; ++j) {
      __m512i& to = p[j * kSums / 4];
      to = _mm512_dpbusd_epi32(to, w.codes[j], x.codes[j]);
    }
    __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(p[0]), w.scales[0]);
    if (kSums == 2) scaled = _mm512_fmadd_ps(_mm512_cvtepi32_ps(p[1]), w.scales[1], scaled);
    sum = _mm512_fmadd_ps(scaled, x.scales, sum);
  }

  static HK2_INLINE void prepare(const ActivationRow& x, int64_t unit, Prepared& out) {
    __m512i natural[4];
    for (int m = 0; m < 4; ++m)
      natural[m] = Format::Order::to_lanes(_mm512_load_si512(x.codes + unit * kUnit + 64 * m));
    transpose_lanes(natural, out.codes);
    for (int s = 0; s < kSums; ++s) {
      __m512i sum = _mm512_setzero_si512();
      for (int j = s * 4 / kSums; j < (s + 1) * 4 / kSums; ++j)
        sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), out.codes[j]);
      out.offsets[s] = _mm512_mullo_epi32(sum, _mm512_set1_epi32(-Format::kOffset));
      if (Format::kShift)
        out.offsets[1] =
            _mm512_mullo_epi32(sum, _mm512_set1_epi32(Format::kShift - Format::kOffset));
    }
    out.scales = _mm512_mul_ps(_mm512_castsi512_ps(twice_each(load_32(x.scales + unit * 8))),
                               _mm512_set1_ps(Format::kFactor));
  }
};

// What load_natural is for formats that have codes in lanes only.
template <class Format>
HK2_INLINE LanedUnit to_natural(const uint8_t* block) {
  const LanedUnit w = load_one<Format>(block);
  LanedUnit out = w;
  transpose_lanes(w.codes, out.codes);
  for (int m = 0; m < 4; ++m) out.codes[m] = Format::Order::to_natural(out.codes[m]);
  return out;
}

// For the kernels of many tokens and of tiles: codes in natural order from `static LanedUnit
// Format::load_natural(const uint8_t*)`, whose scales are still the lanes'.
template <class Format>
struct Natural : Format {
  static constexpr float kMinFactor = Format::kShift ? 1 : Format::kOffset;
  // With shifts by eighths the codes' lowest bits are zeros; small codes decode faster.
  static constexpr int kZeros = Format::kShift ? 3 : 0;

  static HK2_INLINE Unit load(const uint8_t* bytes) {
    const LanedUnit laned = Format::load_natural(bytes);
    Unit w;
    for (int m = 0; m < 4; ++m) w.codes[m] = _mm512_srli_epi16(laned.codes[m], kZeros);
    const __m512 factor = _mm512_set1_ps(Format::kFactor * (1 << kZeros));
    if (Format::kGroup == 16) {
      __m512 scales = laned.scales[0];
      if (kTwoScales<Format>) scales = _mm512_mask_blend_ps(0xaaaa, scales, laned.scales[1]);
      scales = _mm512_mul_ps(scales, factor);
      set_scales(w, scales, scales);
      return w;
    }
    const __m512i index = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512 scales = _mm512_mul_ps(laned.scales[0], factor);
    __m512 mins = scales;
    if (Format::kShift) {
      constexpr float kOffset = Format::kOffset, kStep = 1 << kZeros;
      const __m512 more = _mm512_set1_ps(kOffset / kStep);
      const __m512 less = _mm512_set1_ps((kOffset - Format::kShift) / kStep);
      mins = _mm512_mul_ps(mins, _mm512_mask_blend_ps(laned.plus, more, less));
    }
    set_scales(w, _mm512_castps512_ps256(_mm512_permutexvar_ps(index, scales)),
               _mm512_castps512_ps256(_mm512_permutexvar_ps(index, mins)));
    return w;
  }
};

// What a laned format is multiplied with. A tile of sixteen tokens costs the same for fewer: up to
// kFew the row kernel is faster.
template <class Format, int kFew>
void multiply_laned(const Multiply& call) {
  static_assert(kFew >= kSameBits, "the kernels sum in different orders");
  if (call.tokens <= kFew) return LanedRows<Format>::multiply(call);
  Tiled<Natural<Format>>::multiply(call);
}

}  // namespace
}  // namespace hk2
