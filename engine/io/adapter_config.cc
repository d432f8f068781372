#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "engine/io/adapter_file.h"
#include "engine/io/json_file.h"

namespace qlora::engine {
namespace {

using Json = nlohmann::json;

// Adapters of other tools nest and list a lot; a config of ours has about 1 KB.
constexpr int64_t kMaxConfigBytes = 4 << 20;
// The version of PEFT whose set of keys this writes.
constexpr char kPeftVersion[] = "0.21.2";

// null, false, [] and {} all mean that the feature is not used.
bool IsUnused(const Json& value) {
  return value.is_null() || (value.is_boolean() && !value.get<bool>()) ||
         (value.is_structured() && value.empty());
}

struct Refusal {
  const char* key;
  const char* reason;
};

// What would make the adapter compute something else than scale * B(A(x)) beside the base's own
// weights.
constexpr Refusal kRefusals[] = {
    {"use_dora", "DoRA rescales the base weights"},
    {"lora_bias", "B has a bias"},
    {"modules_to_save", "whole modules are replaced"},
    {"rank_pattern", "modules have ranks of their own: one r is supported"},
    {"alpha_pattern", "modules have alphas of their own: one lora_alpha is supported"},
    {"layer_replication", "layers are repeated"},
    {"fan_in_fan_out", "weights are stored transposed"},
    {"use_qalora", "QALoRA pools the input"},
    {"use_bdlora", "BD-LoRA has block-diagonal factors"},
    {"trainable_token_indices", "rows of the embedding are replaced"},
    {"target_parameters", "parameters that are no Linear are adapted"},
    {"alora_invocation_tokens", "aLoRA acts on part of the sequence"},
};

// These train beside the base as it is; the others ("pissa", "olora", "corda", "loftq") changed it.
bool IsPlainInit(const Json& init) {
  if (init.is_boolean()) return true;
  if (!init.is_string()) return false;
  const std::string name = init.get<std::string>();
  return name == "gaussian" || name == "eva" || name == "orthogonal";
}

class Reader {
 public:
  Reader(const Json& json, std::string path) : json_(json), path_(std::move(path)) {}

  absl::StatusOr<AdapterConfig> Read() {
    if (!json_.is_object()) return Fail("is not a JSON object");
    if (Value("peft_type") != Json("LORA")) {
      return Fail(
          absl::StrCat("peft_type is ", Value("peft_type").dump(), ", only \"LORA\" is supported"));
    }
    for (const Refusal& refusal : kRefusals) {
      if (!IsUnused(Value(refusal.key))) {
        return Fail(
            absl::StrCat(refusal.key, " is set: ", refusal.reason, ", which is not supported"));
      }
    }
    if (const Json bias = Value("bias"); !bias.is_null() && bias != Json("none")) {
      return Fail(absl::StrCat("bias is ", bias.dump(), ", only \"none\" is supported"));
    }
    if (const Json init = Value("init_lora_weights"); !init.is_null() && !IsPlainInit(init)) {
      return Fail(absl::StrCat("init_lora_weights is ", init.dump(),
                               ": such adapters belong to a base that was changed with them"));
    }
    AdapterConfig config;
    const Json r = Value("r");
    if (!r.is_number_integer() || r.get<int64_t>() < 1 || r.get<int64_t>() > kMaxRank) {
      return Fail(
          absl::StrCat("r is ", r.dump(), ", needed is a whole number from 1 to ", kMaxRank));
    }
    config.r = r.get<int64_t>();
    const Json alpha = Value("lora_alpha");
    if (!alpha.is_number() || !std::isfinite(alpha.get<double>())) {
      return Fail(absl::StrCat("lora_alpha is ", alpha.dump(), ", needed is a finite number"));
    }
    config.lora_alpha = alpha.get<double>();
    const Json dropout = Value("lora_dropout");
    if (!dropout.is_null()) {
      if (!dropout.is_number() || !(dropout.get<double>() >= 0 && dropout.get<double>() < 1)) {
        return Fail(absl::StrCat("lora_dropout is ", dropout.dump(), ", allowed is 0 to below 1"));
      }
      config.lora_dropout = dropout.get<double>();
    }
    const Json rslora = Value("use_rslora");
    if (!rslora.is_null()) {
      if (!rslora.is_boolean()) return Fail("use_rslora is neither true nor false");
      config.use_rslora = rslora.get<bool>();
    }
    if (const Json base = Value("base_model_name_or_path"); base.is_string()) {
      config.base_model_name_or_path = base.get<std::string>();
    }
    const Json targets = Value("target_modules");
    if (targets.is_string()) {
      config.target_pattern = targets.get<std::string>();
    } else if (targets.is_array()) {
      for (const Json& target : targets) {
        if (!target.is_string()) return Fail("target_modules holds something that is no string");
        config.target_modules.push_back(target.get<std::string>());
      }
    } else {
      return Fail("target_modules is neither a list nor a string");
    }
    return config;
  }

 private:
  // No adapter of a rank above the width of a model makes sense; the widest is 16,384.
  static constexpr int64_t kMaxRank = 16384;

  Json Value(const char* key) const {
    const auto it = json_.find(key);
    return it == json_.end() ? Json() : *it;
  }
  absl::Status Fail(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": ", what));
  }

  const Json& json_;
  const std::string path_;
};

}  // namespace

std::string AdapterConfigJson(const AdapterConfig& config) {
  std::vector<std::string> targets = config.target_modules;
  std::sort(targets.begin(), targets.end());
  Json alpha = config.lora_alpha;
  // As users write it: 16, not 16.0.
  if (config.lora_alpha == std::floor(config.lora_alpha) && std::fabs(config.lora_alpha) < 1e9) {
    alpha = static_cast<int64_t>(config.lora_alpha);
  }
  const Json json = {
      {"alpha_pattern", Json::object()},
      {"auto_mapping", nullptr},
      {"base_model_name_or_path", config.base_model_name_or_path},
      {"bias", "none"},
      {"exclude_modules", nullptr},
      {"fan_in_fan_out", false},
      {"inference_mode", true},
      {"init_lora_weights", true},
      {"layer_replication", nullptr},
      {"layers_pattern", nullptr},
      {"layers_to_transform", nullptr},
      {"loftq_config", Json::object()},
      {"lora_alpha", alpha},
      {"lora_bias", false},
      {"lora_dropout", config.lora_dropout},
      {"megatron_config", nullptr},
      {"megatron_core", "megatron.core"},
      {"modules_to_save", nullptr},
      {"peft_type", "LORA"},
      {"peft_version", kPeftVersion},
      {"qalora_group_size", 16},
      {"r", config.r},
      {"rank_pattern", Json::object()},
      {"revision", nullptr},
      {"target_modules",
       config.target_pattern.empty() ? Json(targets) : Json(config.target_pattern)},
      {"target_parameters", nullptr},
      {"task_type", "CAUSAL_LM"},
      {"trainable_token_indices", nullptr},
      {"use_dora", false},
      {"use_qalora", false},
      {"use_rslora", config.use_rslora},
  };
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

absl::StatusOr<AdapterConfig> ReadAdapterConfig(Env* env, const std::string& folder) {
  const std::string path = JoinPath(folder, kAdapterConfigFile);
  auto json = ReadJsonFile(env, path, kMaxConfigBytes);
  if (!json.ok()) return json.status();
  return Reader(*json, path).Read();
}

}  // namespace qlora::engine
