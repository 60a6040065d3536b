// The loops shared by the generic kernels, which are the specification of every type.
//
// A quantised format only says how one block becomes codes, scales and minima: weight[i] = scale *
// code - min of its group. A float format only says how one weight becomes a float32.
#pragma once

#include <stdint.h>
#include <string.h>

#include "../bfloat16.h"
#include "hk2/kernels.h"
#include "hk2/quant_blocks.h"

namespace hk2 {
namespace {

inline float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, exponent = h >> 10 & 31,
                 mantissa = h & 1023;
  if (exponent == 31) return float_from_bits(sign | 0x7f800000 | mantissa << 13);
  if (exponent != 0) return float_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // subnormal
  return sign ? -magnitude : magnitude;
}

// The 6-bit scales and minima of Q4_K and Q5_K, eight of each in 12 bytes.
inline void unpack_scales_k4(const uint8_t packed[12], uint8_t scales[8], uint8_t mins[8]) {
  for (int g = 0; g < 4; ++g) {
    scales[g] = packed[g] & 63;
    mins[g] = packed[4 + g] & 63;
    scales[4 + g] = static_cast<uint8_t>((packed[8 + g] & 15) | (packed[g] >> 6) << 4);
    mins[4 + g] = static_cast<uint8_t>(packed[8 + g] >> 4 | (packed[4 + g] >> 6) << 4);
  }
}

// Codes of one block; groups of `Group` weights share a scale and a minimum.
template <int Size, int Group>
struct Unpacked {
  static constexpr int kSize = Size, kGroup = Group, kGroups = Size / Group;
  int8_t codes[Size];
  float scales[Size / Group];
  float mins[Size / Group];
};

constexpr int kTile = 4;  // tokens that share one unpacking

// Format: `using Block`, `using Codes = Unpacked<...>`, `static void unpack(const Block&, Codes&)`.
template <class Format>
struct QuantisedKernel {
  using Block = typename Format::Block;
  using Codes = typename Format::Codes;

  static void multiply(const Multiply& call) {
    const int64_t blocks = call.cols / Codes::kSize;
    for (int64_t r = 0; r < call.rows; ++r) {
      const Block* row = reinterpret_cast<const Block*>(call.weights + r * call.row_bytes);
      for (int64_t t = 0; t < call.tokens; t += kTile) {
        const int tile = static_cast<int>(call.tokens - t < kTile ? call.tokens - t : kTile);
        float total[kTile] = {};
        for (int64_t b = 0; b < blocks; ++b) {
          Codes codes;
          Format::unpack(row[b], codes);
          for (int i = 0; i < tile; ++i) total[i] += dot(codes, call.x[t + i], b * Codes::kSize);
        }
        for (int i = 0; i < tile; ++i) call.y[(t + i) * call.y_stride + r] = total[i];
      }
    }
  }

  static void dequantise(const uint8_t* blocks, int64_t n, float* out) {
    const Block* block = reinterpret_cast<const Block*>(blocks);
    for (int64_t b = 0; b < n / Codes::kSize; ++b) {
      Codes codes;
      Format::unpack(block[b], codes);
      for (int i = 0; i < Codes::kSize; ++i, ++out) {
        const int g = i / Codes::kGroup;
        *out = codes.scales[g] * static_cast<float>(codes.codes[i]) - codes.mins[g];
      }
    }
  }

  static void decode(const Decode& call) {
    alignas(64) float values[kDecodeCols] = {};
    for (int64_t r = 0; r < call.rows; ++r) {
      dequantise(call.weights + r * call.row_bytes, call.cols, values);
      for (int64_t k = 0; k < kDecodeCols; k += kTileCols)
        round_to_bfloat16(values + k, kTileCols, call.out + k * kTileRows + r * kTileCols);
    }
  }

 private:
  static float dot(const Codes& w, const ActivationRow& x, int64_t k) {
    const int8_t* codes = x.codes + k;
    const float* scales = x.scales + k / kActivationBlock;
    const float* sums = (Codes::kGroup == 16 ? x.half_sums : x.sums) + k / Codes::kGroup;
    float total = 0;
    for (int g = 0; g < Codes::kGroups; ++g) {
      int32_t product = 0;
      for (int i = 0; i < Codes::kGroup; ++i)
        product += w.codes[g * Codes::kGroup + i] * codes[g * Codes::kGroup + i];
      const float scale = scales[g * Codes::kGroup / kActivationBlock];
      total += w.scales[g] * (scale * static_cast<float>(product)) - w.mins[g] * sums[g];
    }
    return total;
  }
};

// Format: `using Stored`, `static float to_float(Stored)`.
template <class Format>
struct FloatKernel {
  using Stored = typename Format::Stored;
  static constexpr void (*decode)(const Decode&) = nullptr;  // float types keep their precision
  static constexpr int kLanes =
      8;  // independent partial sums, so that the loop vectorises without -ffast-math

  static void multiply(const Multiply& call) {
    for (int64_t r = 0; r < call.rows; ++r)
      for (int64_t t = 0; t < call.tokens; ++t)
        call.y[t * call.y_stride + r] =
            dot(call.weights + r * call.row_bytes, call.x[t].values, call.cols);
  }

  static void dequantise(const uint8_t* data, int64_t n, float* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = load(data, i);
  }

 private:
  static float load(const uint8_t* data, int64_t i) {
    Stored stored;
    memcpy(&stored, data + i * static_cast<int64_t>(sizeof stored), sizeof stored);
    return Format::to_float(stored);
  }

  static float dot(const uint8_t* row, const float* x, int64_t cols) {
    float lanes[kLanes] = {};
    int64_t k = 0;
    for (; k + kLanes <= cols; k += kLanes)
      for (int i = 0; i < kLanes; ++i) lanes[i] += load(row, k + i) * x[k + i];
    float total = 0;
    for (; k < cols; ++k) total += load(row, k) * x[k];
    for (int i = 0; i < kLanes; ++i) total += lanes[i];
    return total;
  }
};

}  // namespace
}  // namespace hk2

// The object's one exported symbol.
#define HK2_EXPORT(quant, KernelClass)                                                          \
  namespace hk2 {                                                                               \
  namespace {                                                                                   \
  const Kernel kKernel = {KernelClass::multiply, KernelClass::decode, KernelClass::dequantise}; \
  }                                                                                             \
  }                                                                                             \
  extern "C" const hk2::Kernel* hk2_generic_##quant() { return &hk2::kKernel; }
