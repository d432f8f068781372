// Which linears get an adapter, with what scale, how it starts and what it costs.
#ifndef QLORA_ENGINE_LORA_TARGETS_H_
#define QLORA_ENGINE_LORA_TARGETS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/model/model_spec.h"
#include "proto/job.pb.h"
#include "proto/job_problem.h"

namespace qlora::engine {

// One adapted linear: y += scaling · B·(A·x).
struct AdaptedModule {
  int64_t row = 0;     // index into the WeightRows it was chosen from
  std::string module;  // "model.layers.0.self_attn.q_proj"
  int64_t layer = 0;
  int64_t in = 0;
  int64_t out = 0;
  int64_t rank = 0;
  float scaling = 0.0f;  // lora_alpha / r, or lora_alpha / sqrt(r)

  // Keys in adapter_model.safetensors, without PEFT's "base_model.model." prefix.
  std::string KeyA() const { return module + ".lora_A.weight"; }  // [rank, in]
  std::string KeyB() const { return module + ".lora_B.weight"; }  // [out, rank]
  int64_t ParameterCount() const { return rank * (in + out); }
};

struct LoraTargets {
  std::vector<AdaptedModule> modules;  // in the order of the rows, without duplicates
  float dropout = 0.0f;                // of the adapters' inputs, in training
  // Last path components of the modules ("q_proj"), sorted, each once: target_modules of
  // adapter_config.json. Where a suffix would also match a linear that was not chosen, the full
  // paths of its modules stand there instead.
  std::vector<std::string> suffixes;
  // For people: a line per target and kind of linear, with the layers matched.
  std::string table;

  int64_t ParameterCount() const;
};

// A rule for proto::LoadJob: lora.target_modules_regex must compile.
void CheckTargetPattern(const proto::Job& job, proto::JobProblems& problems);

// Resolves lora.target_modules (a name matches a module that is equal to it or ends in "." + name;
// "all-linear" stands for every linear of the layers) or lora.target_modules_regex (PCRE2, must
// match the module's whole path, as Python's re.fullmatch). `lora` must have its defaults filled
// in. INVALID_ARGUMENT, all findings at once: a target that matches nothing (with the nearest
// names), that matches in some layers only (unless allow_uneven_targets), the embedding or the head
// as a target, a pattern that doesn't compile, an r or alpha out of range.
absl::StatusOr<LoraTargets> ResolveLoraTargets(const proto::Lora& lora,
                                               absl::Span<const WeightRow> rows);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_LORA_TARGETS_H_
