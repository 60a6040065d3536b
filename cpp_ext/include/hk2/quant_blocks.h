// The GGUF block layouts as they lie on disk. Sizes are part of the file format: the static_asserts
// are the contract.
//
// `d`, `m`, `dmin` are IEEE half floats kept as their bits. Structs are packed because a block may
// start at any byte. How a block's bytes become weights is said once, in
// kernels/generic/<quant>.cpp.
#pragma once

#include <stdint.h>

namespace hk2 {

#define HK2_PACKED __attribute__((packed))

struct HK2_PACKED BlockQ4_0 {
  uint16_t d;
  uint8_t qs[16];
};
struct HK2_PACKED BlockQ4_1 {
  uint16_t d, m;
  uint8_t qs[16];
};
struct HK2_PACKED BlockQ5_0 {
  uint16_t d;
  uint8_t qh[4];
  uint8_t qs[16];
};
struct HK2_PACKED BlockQ5_1 {
  uint16_t d, m;
  uint8_t qh[4];
  uint8_t qs[16];
};
struct HK2_PACKED BlockQ8_0 {
  uint16_t d;
  int8_t qs[32];
};
struct HK2_PACKED BlockQ2_K {
  uint8_t scales[16];
  uint8_t qs[64];
  uint16_t d, dmin;
};
struct HK2_PACKED BlockQ3_K {
  uint8_t hmask[32];
  uint8_t qs[64];
  uint8_t scales[12];
  uint16_t d;
};
struct HK2_PACKED BlockQ4_K {
  uint16_t d, dmin;
  uint8_t scales[12];
  uint8_t qs[128];
};
struct HK2_PACKED BlockQ5_K {
  uint16_t d, dmin;
  uint8_t scales[12];
  uint8_t qh[32];
  uint8_t qs[128];
};
struct HK2_PACKED BlockQ6_K {
  uint8_t ql[128];
  uint8_t qh[64];
  int8_t scales[16];
  uint16_t d;
};

#undef HK2_PACKED

static_assert(sizeof(BlockQ4_0) == 18, "Q4_0");
static_assert(sizeof(BlockQ4_1) == 20, "Q4_1");
static_assert(sizeof(BlockQ5_0) == 22, "Q5_0");
static_assert(sizeof(BlockQ5_1) == 24, "Q5_1");
static_assert(sizeof(BlockQ8_0) == 34, "Q8_0");
static_assert(sizeof(BlockQ2_K) == 84, "Q2_K");
static_assert(sizeof(BlockQ3_K) == 110, "Q3_K");
static_assert(sizeof(BlockQ4_K) == 144, "Q4_K");
static_assert(sizeof(BlockQ5_K) == 176, "Q5_K");
static_assert(sizeof(BlockQ6_K) == 210, "Q6_K");

}  // namespace hk2
