// The instruction-set tiers and which of them this machine, its operating system included, can run.
#pragma once

#include <string>
#include <vector>

namespace hk2 {

enum class Tier : int { kGeneric, kAvx2, kAvx512Vnni, kAvx512Vbmi, kAmx, kAmxEmulated };

struct TierInfo {
  Tier tier;
  const char* name;  // also the folder name under kernels/
  Tier parent;       // where a missing kernel is looked up next; generic is its own parent
};

const std::vector<TierInfo>& all_tiers();  // parents before children
std::vector<TierInfo> supported_tiers();   // lowest first
const TierInfo& tier_info(Tier tier);
// "" = best; std::invalid_argument for unknown or unsupported. "amx_emulated", for tests, runs
// everywhere, slowly, and is chosen by name only.
TierInfo choose_tier(const std::string& name);

}  // namespace hk2
