#include "engine/model/kept_modules.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/lora/nearest_name.h"
#include "proto/errors.h"

namespace qlora::engine {

bool NamesModule(const std::string& name, const std::string& module) {
  return module == name || absl::StartsWith(module, name + ".") ||
         absl::EndsWith(module, "." + name);
}

absl::Status KeepIn16Bits(absl::Span<const std::string> names, ModelSpec* spec) {
  std::vector<std::string> modules, last_parts;
  for (const WeightRow& row : WeightRows(*spec)) {
    if (!row.lora_target) continue;  // the linears of layers, kept or not
    modules.push_back(row.module);
    const std::string last = row.module.substr(row.module.rfind('.') + 1);
    if (std::find(last_parts.begin(), last_parts.end(), last) == last_parts.end()) {
      last_parts.push_back(last);
    }
  }
  std::vector<std::string> kept, faults;
  for (size_t i = 0; i < size_t(names.size()); ++i) {
    const size_t before = kept.size();
    std::copy_if(modules.begin(), modules.end(), std::back_inserter(kept),
                 [&](const std::string& module) { return NamesModule(names[i], module); });
    if (kept.size() > before) continue;
    std::vector<std::string> near = NearestNames(names[i], last_parts);
    if (near.empty()) near = NearestNames(names[i], modules);
    faults.push_back(absl::StrCat(
        "quantization.keep_in_16_bits[", i, "]: found \"", names[i],
        "\", which names no linear layer of this model; allowed: a module's whole name (",
        modules.front(), "), its first parts or its last (", absl::StrJoin(last_parts, ", "), ")",
        near.empty() ? "" : absl::StrCat("; nearest: ", absl::StrJoin(near, ", "))));
  }
  if (!faults.empty()) return proto::BadJobError(absl::StrJoin(faults, "\n"));
  std::sort(kept.begin(), kept.end());
  kept.erase(std::unique(kept.begin(), kept.end()), kept.end());
  spec->kept_in_16_bits = std::move(kept);
  return absl::OkStatus();
}

}  // namespace qlora::engine
