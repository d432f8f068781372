// Configs for tests: a good one of each family, to be changed.
#ifndef QLORA_TESTS_ENGINE_MODEL_CONFIG_TEXT_H_
#define QLORA_TESTS_ENGINE_MODEL_CONFIG_TEXT_H_

#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/string_view.h"

namespace qlora::engine {

// Heads of 16 over 64 features; every key that the family needs, none besides.
inline nlohmann::json GoodConfig(const std::string& family) {
  nlohmann::json config = {{"model_type", family},     {"hidden_size", 64},
                           {"intermediate_size", 96},  {"num_hidden_layers", 3},
                           {"num_attention_heads", 4}, {"num_key_value_heads", 2},
                           {"vocab_size", 100},        {"max_position_embeddings", 256},
                           {"rms_norm_eps", 1e-5}};
  if (family == "mistral") config["sliding_window"] = nullptr;
  if (family == "qwen3") config["head_dim"] = 16;
  return config;
}

// The good config with a merge patch (RFC 7396) applied: null removes a key.
inline std::string PatchedConfig(const std::string& family, absl::string_view patch) {
  nlohmann::json config = GoodConfig(family);
  config.merge_patch(nlohmann::json::parse(patch.begin(), patch.end()));
  return config.dump();
}

}  // namespace qlora::engine

#endif  // QLORA_TESTS_ENGINE_MODEL_CONFIG_TEXT_H_
