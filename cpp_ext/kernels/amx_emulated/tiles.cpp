// The tile kernels of ../amx on stand-ins for its instructions, so that their logic is tested on
// every machine. A tile row's 64 bytes are 16 float32 or 32 bfloat16.
#include <stdint.h>
#include <string.h>

namespace hk2 {
namespace {

constexpr int kTiles = 8, kRows = 16, kRowBytes = 64;

struct TileState {
  bool configured;
  uint8_t bytes[kTiles][kRows][kRowBytes];
};
thread_local TileState state;

inline float from_bfloat16(const uint8_t* bytes) {
  uint16_t upper;
  memcpy(&upper, bytes, sizeof upper);
  const uint32_t bits = static_cast<uint32_t>(upper) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline void _tile_loadconfig(const void*) { state.configured = true; }
inline void _tile_release() { state.configured = false; }
inline void _tile_zero(int tile) { memset(state.bytes[tile], 0, sizeof state.bytes[tile]); }

// Without a configuration the processor faults.
inline void _tile_loadd(int tile, const void* base, int64_t stride) {
  if (!state.configured) __builtin_trap();
  for (int r = 0; r < kRows; ++r)
    memcpy(state.bytes[tile][r], static_cast<const uint8_t*>(base) + r * stride, kRowBytes);
}
inline void _tile_stored(int tile, void* base, int64_t stride) {
  if (!state.configured) __builtin_trap();
  for (int r = 0; r < kRows; ++r)
    memcpy(static_cast<uint8_t*>(base) + r * stride, state.bytes[tile][r], kRowBytes);
}

inline void _tile_dpbf16ps(int sums, int left, int right) {
  for (int r = 0; r < kRows; ++r) {
    float row[kRows];
    memcpy(row, state.bytes[sums][r], sizeof row);
    for (int pair = 0; pair < kRows; ++pair) {
      const float even = from_bfloat16(state.bytes[left][r] + 4 * pair);
      const float odd = from_bfloat16(state.bytes[left][r] + 4 * pair + 2);
      for (int t = 0; t < kRows; ++t)
        row[t] += even * from_bfloat16(state.bytes[right][pair] + 4 * t) +
                  odd * from_bfloat16(state.bytes[right][pair] + 4 * t + 2);
    }
    memcpy(state.bytes[sums][r], row, sizeof row);
  }
}

inline void transpose(uint32_t block[16][16]) {
  for (int r = 0; r < 16; ++r)
    for (int c = 0; c < r; ++c) {
      const uint32_t other = block[r][c];
      block[r][c] = block[c][r];
      block[c][r] = other;
    }
}

}  // namespace
}  // namespace hk2

#include "../amx/tiles.h"

extern "C" const hk2::TileKernel* hk2_amx_emulated_tiles() { return &hk2::kKernel; }
