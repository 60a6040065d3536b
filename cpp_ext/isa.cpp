#include "hk2/isa.h"

#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace hk2 {
namespace {

#if defined(__x86_64__)
// Linux gives a process the registers of AMX only when asked; its threads and children inherit
// them.
bool request_tile_registers() {
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
#if defined(__linux__) && defined(SYS_arch_prctl)
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

struct CpuFeatures {
  bool avx2 = false, avx512_vnni = false, avx512_vbmi = false, amx = false;

  CpuFeatures() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return;
    const bool fma = c >> 12 & 1, osxsave = c >> 27 & 1, f16c = c >> 29 & 1;
    if (!osxsave) return;
    // The operating system must save the wide registers too, or the CPU's word is worth nothing.
    unsigned xcr0, xcr0_high;
    __asm__("xgetbv" : "=a"(xcr0), "=d"(xcr0_high) : "c"(0));
    const bool os_ymm = (xcr0 & 0x06) == 0x06, os_zmm = (xcr0 & 0xe6) == 0xe6;
    const bool os_tiles = (xcr0 & 0x60000) == 0x60000;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    avx2 = os_ymm && fma && f16c && (b >> 5 & 1);
    const bool f = b >> 16 & 1, dq = b >> 17 & 1, bw = b >> 30 & 1, vl = b >> 31 & 1;
    avx512_vnni = avx2 && os_zmm && f && dq && bw && vl && (c >> 11 & 1);
    const bool vbmi = c >> 1 & 1, gfni = c >> 8 & 1;
    avx512_vbmi = avx512_vnni && vbmi && gfni;
    const bool amx_bf16 = d >> 22 & 1, amx_tile = d >> 24 & 1;
    amx = avx512_vbmi && os_tiles && amx_bf16 && amx_tile && request_tile_registers();
  }
};
#endif

bool is_supported(Tier tier) {
#if defined(__x86_64__)
  static const CpuFeatures cpu;
  if (tier == Tier::kAvx2) return cpu.avx2;
  if (tier == Tier::kAvx512Vnni) return cpu.avx512_vnni;
  if (tier == Tier::kAvx512Vbmi) return cpu.avx512_vbmi;
  if (tier == Tier::kAmx) return cpu.amx;
#endif
  return tier == Tier::kGeneric;
}

}  // namespace

const std::vector<TierInfo>& all_tiers() {
  static const std::vector<TierInfo> tiers = {
      {Tier::kGeneric, "generic", Tier::kGeneric},
      {Tier::kAvx2, "avx2", Tier::kGeneric},
      {Tier::kAvx512Vnni, "avx512_vnni", Tier::kAvx2},
      {Tier::kAvx512Vbmi, "avx512_vbmi", Tier::kAvx512Vnni},
      {Tier::kAmx, "amx", Tier::kAvx512Vbmi},
      {Tier::kAmxEmulated, "amx_emulated", Tier::kGeneric},
  };
  return tiers;
}

std::vector<TierInfo> supported_tiers() {
  std::vector<TierInfo> result;
  for (const TierInfo& info : all_tiers())
    if (is_supported(info.tier)) result.push_back(info);
  return result;
}

const TierInfo& tier_info(Tier tier) { return all_tiers()[static_cast<int>(tier)]; }

TierInfo choose_tier(const std::string& name) {
  const std::vector<TierInfo> supported = supported_tiers();
  if (name.empty()) return supported.back();
  if (name == "amx_emulated") return tier_info(Tier::kAmxEmulated);
  std::string names;
  for (const TierInfo& info : supported) {
    if (name == info.name) return info;
    names += (names.empty() ? "" : ", ") + std::string(info.name);
  }
  for (const TierInfo& info : all_tiers())
    if (name == info.name)
      throw std::invalid_argument("tier: this machine cannot run '" + name + "', expected one of " +
                                  names);
  throw std::invalid_argument("tier: unknown name '" + name + "', expected one of " + names);
}

}  // namespace hk2
