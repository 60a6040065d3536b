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
struct HK2_PACKED BlockIQ1_S {
  uint16_t d;
  uint8_t qs[32];
  uint16_t qh[8];
};
struct HK2_PACKED BlockIQ1_M {
  uint8_t qs[32];
  uint8_t qh[16];
  uint16_t scales[4];
};
struct HK2_PACKED BlockIQ2_XXS {
  uint16_t d;
  struct HK2_PACKED {
    uint8_t qs[4];
    uint32_t signs;
  } groups[8];
};
struct HK2_PACKED BlockIQ2_XS {
  uint16_t d;
  uint16_t qs[32];
  uint8_t scales[8];
};
struct HK2_PACKED BlockIQ2_S {
  uint16_t d;
  uint8_t qs[32];
  uint8_t signs[32];
  uint8_t qh[8];
  uint8_t scales[8];
};
struct HK2_PACKED BlockIQ3_XXS {
  uint16_t d;
  uint8_t qs[64];
  uint32_t signs[8];
};
struct HK2_PACKED BlockIQ3_S {
  uint16_t d;
  uint8_t qs[64];
  uint8_t qh[8];
  uint8_t signs[32];
  uint8_t scales[4];
};
struct HK2_PACKED BlockIQ4_NL {
  uint16_t d;
  uint8_t qs[16];
};
struct HK2_PACKED BlockIQ4_XS {
  uint16_t d;
  uint16_t scales_h;
  uint8_t scales_l[4];
  uint8_t qs[128];
};
struct HK2_PACKED BlockTQ1_0 {
  uint8_t qs[48];
  uint8_t qh[4];
  uint16_t d;
};
struct HK2_PACKED BlockTQ2_0 {
  uint8_t qs[64];
  uint16_t d;
};
struct HK2_PACKED BlockMXFP4 {
  uint8_t e;
  uint8_t qs[16];
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
static_assert(sizeof(BlockIQ1_S) == 50, "IQ1_S");
static_assert(sizeof(BlockIQ1_M) == 56, "IQ1_M");
static_assert(sizeof(BlockIQ2_XXS) == 66, "IQ2_XXS");
static_assert(sizeof(BlockIQ2_XS) == 74, "IQ2_XS");
static_assert(sizeof(BlockIQ2_S) == 82, "IQ2_S");
static_assert(sizeof(BlockIQ3_XXS) == 98, "IQ3_XXS");
static_assert(sizeof(BlockIQ3_S) == 110, "IQ3_S");
static_assert(sizeof(BlockIQ4_NL) == 18, "IQ4_NL");
static_assert(sizeof(BlockIQ4_XS) == 136, "IQ4_XS");
static_assert(sizeof(BlockTQ1_0) == 54, "TQ1_0");
static_assert(sizeof(BlockTQ2_0) == 66, "TQ2_0");
static_assert(sizeof(BlockMXFP4) == 17, "MXFP4");

}  // namespace hk2
