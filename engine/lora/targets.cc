#include "engine/lora/targets.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "engine/lora/full_match.h"
#include "engine/lora/nearest_name.h"
#include "proto/errors.h"
#include "proto/job_ranges.h"

namespace qlora::engine {
namespace {

constexpr char kAllLinear[] = "all-linear";

std::string LastComponent(const std::string& module) {
  return module.substr(module.rfind('.') + 1);
}

// "self_attn.q_proj": the module's path within its layer.
std::string KindOf(const WeightRow& row) {
  const std::string prefix = absl::StrCat("model.layers.", row.layer, ".");
  return absl::StartsWith(row.module, prefix) ? row.module.substr(prefix.size()) : row.module;
}

bool IsNamed(const std::string& module, absl::string_view name) {
  return module == name || absl::EndsWith(module, absl::StrCat(".", name));
}

// "0-21", "0,2,5-7".
std::string LayerRanges(const std::set<int64_t>& layers) {
  std::vector<std::string> parts;
  for (auto it = layers.begin(); it != layers.end();) {
    const int64_t first = *it;
    int64_t last = first;
    while (++it != layers.end() && *it == last + 1) ++last;
    parts.push_back(first == last ? absl::StrCat(first) : absl::StrCat(first, "-", last));
  }
  return absl::StrJoin(parts, ",");
}

class Resolver {
 public:
  Resolver(const proto::Lora& lora, absl::Span<const WeightRow> rows) : lora_(lora), rows_(rows) {
    for (const WeightRow& row : rows_) {
      if (!row.lora_target) continue;
      all_layers_.insert(row.layer);
      if (kinds_.insert(KindOf(row)).second) names_.push_back(LastComponent(row.module));
    }
  }

  absl::StatusOr<LoraTargets> Resolve() {
    CheckRankAndAlpha();
    if (lora_.has_target_modules_regex()) {
      if (!lora_.target_modules().empty()) {
        Fault(
            "lora.target_modules and lora.target_modules_regex: found both, allowed: one of them");
      }
      MatchRegex(lora_.target_modules_regex());
    } else {
      MatchNames();
    }
    CheckEven();
    if (!faults_.empty()) return proto::BadJobError(absl::StrJoin(faults_, "\n"));
    return Result();
  }

 private:
  void Fault(std::string text) { faults_.push_back(std::move(text)); }

  void CheckRankAndAlpha() {
    const proto::IntRange* r = proto::FindIntRange("lora.r");
    if (r != nullptr && !r->Contains(lora_.r())) {
      Fault(absl::StrCat("lora.r: found ", lora_.r(), ", allowed: ", r->Text()));
    }
    const proto::RealRange* alpha = proto::FindRealRange("lora.lora_alpha");
    if (alpha != nullptr && !alpha->Contains(lora_.lora_alpha())) {
      Fault(absl::StrCat("lora.lora_alpha: found ", lora_.lora_alpha(),
                         ", allowed: ", alpha->Text()));
    }
  }

  void MatchNames() {
    std::vector<std::string> targets(lora_.target_modules().begin(), lora_.target_modules().end());
    if (targets.empty()) {
      Fault(absl::StrCat("lora.target_modules: found nothing, allowed: \"", kAllLinear, "\" or ",
                         absl::StrJoin(names_, ", ")));
    }
    for (size_t i = 0; i < targets.size(); ++i) {
      const std::string& target = targets[i];
      if (std::find(targets.begin(), targets.begin() + i, target) != targets.begin() + i) continue;
      const std::string field = absl::StrFormat("lora.target_modules[%d]", i);
      if (target == kAllLinear) {
        if (targets.size() > 1) {
          Fault(
              absl::StrCat(field, ": found \"all-linear\" beside other names, allowed: it alone"));
        }
        Match(field, target, [](const WeightRow& row) { return row.lora_target; });
      } else {
        Match(field, target, [&](const WeightRow& row) { return IsNamed(row.module, target); });
      }
    }
  }

  void MatchRegex(const std::string& pattern) {
    constexpr char kField[] = "lora.target_modules_regex";
    const absl::StatusOr<FullMatch> regex = FullMatch::Compile(pattern);
    if (!regex.ok()) return Fault(absl::StrCat(kField, ": ", regex.status().message()));
    std::string failure;
    Match(kField, pattern, [&](const WeightRow& row) {
      // Norms are not linears; a pattern as wide as "model\.layers\..*" passes them by.
      if (!failure.empty() || !IsMatrixModule(row)) return false;
      const absl::StatusOr<bool> matches = regex->Matches(row.module);
      if (!matches.ok()) failure = std::string(matches.status().message());
      return matches.ok() && *matches;
    });
    if (!failure.empty()) Fault(absl::StrCat(kField, ": ", failure));
  }

  static bool IsMatrixModule(const WeightRow& row) {
    return row.lora_target || row.role == WeightRole::kEmbedding || row.role == WeightRole::kHead;
  }

  // Notes what one target matches, or why it may not.
  void Match(absl::string_view field, const std::string& target, auto&& matches) {
    std::set<std::string> norms;
    bool refused = false;
    std::map<std::string, std::set<int64_t>> layers_of_kind;
    for (size_t i = 0; i < rows_.size(); ++i) {
      const WeightRow& row = rows_[i];
      if (!matches(row)) continue;
      if (row.lora_target) {
        chosen_.insert(static_cast<int64_t>(i));
        layers_of_kind[KindOf(row)].insert(row.layer);
      } else if (IsMatrixModule(row)) {
        refused = true;
        RefuseOutside(field, target, row);
      } else {
        norms.insert(KindOf(row));
      }
    }
    for (const auto& [kind, layers] : layers_of_kind) {
      lines_.push_back({target, kind, layers});
      layers_of_kind_[kind].insert(layers.begin(), layers.end());
    }
    if (layers_of_kind.empty() && !refused) RefuseUnmatched(field, target, norms);
  }

  void RefuseOutside(absl::string_view field, const std::string& target, const WeightRow& row) {
    const char* reason =
        row.role == WeightRole::kHead
            ? "the output head stays frozen (with tied embeddings it is the embedding, and servers "
              "refuse adapters on it for several families)"
            : "the embedding stays frozen (an adapter on it would change the head of a tied model, "
              "and servers refuse it for several families)";
    Fault(absl::StrCat(field, ": \"", target, "\" matches ", row.module, "; ", reason,
                       ". Allowed: linear layers (", absl::StrJoin(names_, ", "),
                       "), or \"all-linear\""));
  }

  void RefuseUnmatched(absl::string_view field, const std::string& target,
                       const std::set<std::string>& norms) {
    if (!norms.empty()) {
      Fault(absl::StrCat(field, ": \"", target, "\" matches ", *norms.begin(),
                         ", which is no linear layer. Allowed: ", absl::StrJoin(names_, ", ")));
      return;
    }
    std::vector<std::string> candidates = names_;
    if (absl::StrContains(target, '.')) {
      candidates.assign(kinds_.begin(), kinds_.end());
      for (const WeightRow& row : rows_) {
        if (row.lora_target) candidates.push_back(row.module);
      }
    }
    const std::vector<std::string> nearest = NearestNames(target, candidates);
    Fault(absl::StrCat(field, ": \"", target, "\" matches no linear layer. ",
                       nearest.empty() ? absl::StrCat("Allowed: ", absl::StrJoin(names_, ", "))
                                       : absl::StrCat("Nearest: ", absl::StrJoin(nearest, ", "))));
  }

  // The targets together must take each kind of linear in all layers or in none.
  void CheckEven() {
    if (lora_.allow_uneven_targets()) return;
    for (const auto& [kind, layers] : layers_of_kind_) {
      if (layers == all_layers_) continue;
      std::set<int64_t> missing;
      std::set_difference(all_layers_.begin(), all_layers_.end(), layers.begin(), layers.end(),
                          std::inserter(missing, missing.end()));
      Fault(absl::StrCat("lora targets: ", kind, " is matched in layers ", LayerRanges(layers),
                         " but not in ", LayerRanges(missing),
                         ". Match all layers, or set lora.allow_uneven_targets"));
    }
  }

  LoraTargets Result() const {
    LoraTargets result;
    const double r = lora_.r();
    const double scaling = lora_.lora_alpha() / (lora_.use_rslora() ? std::sqrt(r) : r);
    for (const int64_t i : chosen_) {
      const WeightRow& row = rows_[i];
      result.modules.push_back({.row = i,
                                .module = row.module,
                                .layer = row.layer,
                                .in = row.cols,
                                .out = row.rows,
                                .rank = lora_.r(),
                                .scaling = static_cast<float>(scaling)});
    }
    result.suffixes = Suffixes(result.modules);
    result.table = Table();
    return result;
  }

  std::vector<std::string> Suffixes(const std::vector<AdaptedModule>& modules) const {
    std::map<std::string, int64_t> linears;  // last component -> linears that end in it
    for (const WeightRow& row : rows_) {
      if (row.lora_target) ++linears[LastComponent(row.module)];
    }
    std::map<std::string, std::vector<std::string>> chosen;
    for (const AdaptedModule& module : modules) {
      chosen[LastComponent(module.module)].push_back(module.module);
    }
    std::vector<std::string> suffixes;
    for (const auto& [suffix, paths] : chosen) {
      if (static_cast<int64_t>(paths.size()) == linears[suffix]) {
        suffixes.push_back(suffix);
      } else {
        suffixes.insert(suffixes.end(), paths.begin(), paths.end());
      }
    }
    std::sort(suffixes.begin(), suffixes.end());
    return suffixes;
  }

  std::string Table() const {
    constexpr int kWidestTarget = 40;
    int width = 6;
    for (const Line& line : lines_) {
      width = std::max(width, std::min(static_cast<int>(line.target.size()), kWidestTarget));
    }
    std::string table =
        absl::StrFormat("%-*s  %-18s  %15s  layers\n", width, "target", "module", "in -> out");
    for (const Line& line : lines_) {
      const auto row = std::find_if(rows_.begin(), rows_.end(), [&](const WeightRow& r) {
        return r.lora_target && KindOf(r) == line.kind;
      });
      absl::StrAppendFormat(&table, "%-*s  %-18s  %15s  %s (%d of %d)\n", width, line.target,
                            line.kind, absl::StrCat(row->cols, " -> ", row->rows),
                            LayerRanges(line.layers), line.layers.size(), all_layers_.size());
    }
    return table;
  }

  struct Line {
    std::string target, kind;
    std::set<int64_t> layers;
  };

  const proto::Lora& lora_;
  absl::Span<const WeightRow> rows_;
  std::set<int64_t> all_layers_;
  std::set<std::string> kinds_;
  std::vector<std::string> names_;  // last components, in the order of the rows
  std::set<int64_t> chosen_;        // indices of rows
  std::map<std::string, std::set<int64_t>> layers_of_kind_;
  std::vector<Line> lines_;
  std::vector<std::string> faults_;
};

}  // namespace

int64_t LoraTargets::ParameterCount() const {
  int64_t count = 0;
  for (const AdaptedModule& module : modules) count += module.ParameterCount();
  return count;
}

void CheckTargetPattern(const proto::Job& job, proto::JobProblems& problems) {
  if (!job.lora().has_target_modules_regex()) return;
  const absl::StatusOr<FullMatch> pattern = FullMatch::Compile(job.lora().target_modules_regex());
  if (!pattern.ok()) {
    problems.AddAt("lora.target_modules_regex", pattern.status().message());
  }
}

absl::StatusOr<LoraTargets> ResolveLoraTargets(const proto::Lora& lora,
                                               absl::Span<const WeightRow> rows) {
  absl::StatusOr<LoraTargets> targets = Resolver(lora, rows).Resolve();
  if (targets.ok()) targets->dropout = float(lora.lora_dropout());
  return targets;
}

}  // namespace qlora::engine
