// Seeds of what a model folder holds beside its tokenizer.
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/io/safetensors_writer.h"
#include "tests/engine/model/config_text.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/support/fuzz/seeds.h"

namespace qlora::tests {
namespace {

void AddSafetensors(const Seeds& seeds) {
  FaultyEnv env;
  const std::string zeros(24, '\0');
  const absl::Span<const uint8_t> data(reinterpret_cast<const uint8_t*>(zeros.data()), 24);
  Require(engine::WriteSafetensors(&env, "one", {{{"a", engine::Dtype::kF32, {2, 3}}, data}}).ok(),
          "a file of one tensor");
  Require(engine::WriteSafetensors(&env, "several",
                                   {{{"x.weight", engine::Dtype::kBF16, {3, 4}}, data},
                                    {{"scalar", engine::Dtype::kI64, {}}, data.subspan(0, 8)},
                                    {{"nothing", engine::Dtype::kU8, {0, 7}}, {}},
                                    {{"packed", engine::Dtype::kF4, {4}}, data.subspan(0, 2)}})
              .ok(),
          "a file of several tensors");
  Require(engine::WriteSafetensors(&env, "none", {}).ok(), "a file of no tensor");
  for (const char* name : {"one", "several", "none"}) {
    seeds.Add("safetensors", name, ReadBack(&env, name));
  }
}

void AddFaultySafetensors(const Seeds& seeds) {
  // A file's header behind its length.
  const auto header = [&](const char* name, const std::string& text, const std::string& data = "") {
    std::string length(8, '\0');
    length[0] = char(text.size());
    seeds.Add("safetensors", name, length + text + data);
  };
  header("escapes", R"({"__metadata__":{"a":"\"\\\/\b\f\n\r\t\u00e9\uD83D\udE00"}} )");
  header("low_surrogate", R"({"__metadata__":{"a":"\udE00"}})");
  header("high_surrogate", R"({"__metadata__":{"a":"\ud83dx"}})");
  header("two_high_surrogates", R"({"__metadata__":{"a":"\ud83d\ud83d"}})");
  header("no_hex", R"({"__metadata__":{"a":"\u00x0"}})");
  header("no_escape", R"({"__metadata__":{"a":"\q"}})");
  header("no_end", R"({"__metadata__":{"a":"\)");
  header("metadata_twice", R"({"__metadata__":{"a":"b"},"__metadata__":{}})");
  header("key_twice", R"({"__metadata__":{"a":"b","a":"c"}})");
  const auto tensor = [&](const char* name, const std::string& fields) {
    header(name, absl::StrCat("{\"t\":{", fields, "}}"), std::string(4, '\0'));
  };
  tensor("no_dtype", R"("shape":[4],"data_offsets":[0,4])");
  tensor("no_shape", R"("dtype":"U8","data_offsets":[0,4])");
  tensor("one_offset", R"("dtype":"U8","shape":[4],"data_offsets":[0])");
  tensor("three_offsets", R"("dtype":"U8","shape":[4],"data_offsets":[0,4,4])");
  tensor("backwards", R"("dtype":"U8","shape":[4],"data_offsets":[4,0])");
  tensor("beyond", R"("dtype":"U8","shape":[5],"data_offsets":[0,5])");
  tensor("other_size", R"("dtype":"U8","shape":[3],"data_offsets":[0,4])");
  tensor("hole", R"("dtype":"U8","shape":[3],"data_offsets":[1,4])");
  tensor("rest", R"("dtype":"U8","shape":[3],"data_offsets":[0,3])");
  tensor("half_a_byte", R"("dtype":"F4","shape":[3],"data_offsets":[0,2])");
  tensor("dtype", R"("dtype":"X9","shape":[4],"data_offsets":[0,4])");
  tensor("key", R"("dtype":"U8","x":[4])");
  tensor("fraction", R"("dtype":"U8","shape":[4.0])");
  tensor("leading_zero", R"("dtype":"U8","shape":[04])");
  tensor("huge", R"("dtype":"U8","shape":[9223372036854775808])");
  tensor("negative", R"("dtype":"U8","shape":[-4])");
  tensor("no_number", R"("dtype":"U8","shape":["4"])");
  header("name_twice", R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
                       R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})");
  header("no_name", R"({"":{}})");
  header("control", R"({"\u0001":{}})");
  header("text_behind", "{}x");
  header("no_object", "[]");
  header("no_utf8", "{\"\xff\"}");
}

void AddConfigs(const Seeds& seeds) {
  for (const char* family : {"llama", "mistral", "qwen2", "qwen3"}) {
    seeds.Add("model_config", family, engine::GoodConfig(family).dump());
  }
  seeds.Add("model_config", "llama3_rope",
            engine::PatchedConfig("llama", R"({"rope_scaling": {"rope_type": "llama3",
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128}, "rope_theta": 500000.0,
        "tie_word_embeddings": true, "eos_token_id": [1, 2]})") +
                kNul + R"({"eos_token_id": [3]})");
  seeds.Add("model_config", "yarn",
            engine::PatchedConfig("qwen2", R"({"rope_parameters": {"rope_type": "yarn",
        "factor": 4.0, "rope_theta": 10000.0, "beta_fast": 32, "mscale": 1, "mscale_all_dim": 1,
        "original_max_position_embeddings": 64}, "use_sliding_window": true, "sliding_window": 32,
        "max_window_layers": 1, "torch_dtype": "bfloat16"})"));
  seeds.Add("model_config", "quantized", engine::PatchedConfig("llama", R"({"quantization_config": {
        "quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"}})"));
}

// Configs that are wrong in as many ways as one can be: all faults are told at once.
void AddFaultyConfigs(const Seeds& seeds) {
  constexpr char kWrong[] = R"({"hidden_size": 63, "num_hidden_layers": "3",
      "num_attention_heads": 6, "num_key_value_heads": 4, "intermediate_size": null,
      "vocab_size": 18446744073709551615, "max_position_embeddings": 1.5, "rms_norm_eps": 0,
      "initializer_range": 2, "hidden_act": "gelu", "tie_word_embeddings": "no", "head_dim": 15,
      "attention_dropout": 0.1, "torch_dtype": "int8", "dtype": "float64", "mlp_bias": true,
      "quantization_config": {"quant_method": "gptq"}, "partial_rotary_factor": 0.5,
      "rope_theta": 0, "eos_token_id": [1, -1], "bos_token_id": [1, 2], "attention_bias": true,
      "sliding_window": 0, "layer_types": ["x"], "architectures": ["Other"]})";
  for (const char* family : {"llama", "mistral", "qwen2", "qwen3"}) {
    seeds.Add("model_config", absl::StrCat("wrong_", family),
              engine::PatchedConfig(family, kWrong));
  }
  const auto add = [&](const char* name, const char* family, const char* patch) {
    seeds.Add("model_config", name, engine::PatchedConfig(family, patch));
  };
  add("family", "gpt2", "{}");
  seeds.Add("model_config", "no_object", "[]");
  seeds.Add("model_config", "no_json", "{");
  add("float16", "llama", R"({"dtype": "float16", "hidden_size": 66, "bos_token_id": 3})");
  add("fp4", "llama", R"({"quantization_config": {"load_in_4bit": true,
      "bnb_4bit_quant_type": "int4"}})");
  add("layers_alike", "mistral", R"({"sliding_window": 8, "layer_types": ["full_attention",
      "full_attention", "full_attention"]})");
  add("window", "qwen3", R"({"use_sliding_window": true, "sliding_window": 8, "layer_types":
      ["sliding_attention", "full_attention", "sliding_attention"]})");
  add("no_window", "qwen2", R"({"layer_types": ["sliding_attention", "x", "x"]})");
  add("layer_of_no_type", "qwen2", R"({"layer_types": ["full_attention", "x", "x"]})");
  add("rope_linear", "llama", R"({"rope_scaling": {"type": "linear", "factor": 2}})");
  add("rope_twice", "llama", R"({"rope_scaling": {"type": "linear", "factor": 2, "x": null},
      "rope_parameters": {"rope_type": "linear", "factor": 3}})");
  add("rope_list", "llama", R"({"rope_parameters": [], "rope_theta": 7})");
  add("rope_wrong", "llama", R"({"rope_scaling": {"rope_type": "longrope", "type": "x",
      "surprise": 1, "rope_theta": 5, "partial_rotary_factor": 0.5}, "rope_theta": 7})");
  add("rope_default", "llama", R"({"rope_scaling": {"rope_type": "default"}})");
  add("rope_no_type", "llama", R"({"rope_scaling": {"type": "x"}})");
  add("llama3_wrong", "llama", R"({"original_max_position_embeddings": 9, "rope_scaling":
      {"rope_type": "llama3", "factor": 0.5, "low_freq_factor": 4, "high_freq_factor": 1,
       "original_max_position_embeddings": 8}})");
  add("yarn_wrong", "llama", R"({"rope_scaling": {"rope_type": "yarn", "beta_fast": 1,
      "beta_slow": 2, "truncate": 3, "attention_factor": "x"}})");
  const std::string good = engine::GoodConfig("llama").dump() + kNul;
  seeds.Add("model_config", "generation_no_json", good + "{");
  seeds.Add("model_config", "generation_wrong", good + R"({"eos_token_id": "x"})");
}

void AddIndexes(const Seeds& seeds) {
  seeds.Add("index", "one", R"({"metadata":{"total_size":4},"weight_map":{"t":"a.safetensors"}})");
  seeds.Add("index", "missing", R"({"weight_map":{"t":"c.safetensors","u":"a.safetensors"}})");
  seeds.Add("index", "outside", R"({"weight_map":{"t":"../m/a.safetensors"}})");
  seeds.Add("index", "absent", R"({"weight_map":{"t":"a.safetensors","v":"b.safetensors"}})");
  seeds.Add("index", "unlisted", R"({"weight_map":{"t":"a.safetensors","u":"b.safetensors"}})");
  seeds.Add("index", "no_map", R"({"weight_map":[]})");
  seeds.Add("index", "empty_map", R"({"weight_map":{}})");
  seeds.Add("index", "no_name", R"({"weight_map":{"t":7}})");
  seeds.Add("index", "twice", R"({"weight_map":{"t":"a.safetensors","t":"b.safetensors"}})");
  FaultyEnv env;
  Require(engine::WriteSafetensors(&env, "none", {}).ok(), "a file of no tensor");
  seeds.Add("index", "lone", kNul + ReadBack(&env, "none"));
  seeds.Add("index", "pickle", "");
}

// Faults of the quant_state, and of the tensors beside a good one.
void AddFaultyQuantized(const Seeds& seeds, const std::string& doubly) {
  const auto add = [&](const char* name, const std::string& state,
                       const std::string& changes = "") {
    seeds.Add("quantized", name, state + kNul + changes);
  };
  add("no_json", "{");
  add("no_object", "[]");
  add("lacking", R"({"quant_type":"nf4"})");
  add("unknown_key", R"({"quant_type":"nf4","x":1})");
  add("some_nested", R"({"quant_type":"nf4","blocksize":64,"dtype":"float16","shape":[4,64],)"
                     R"("nested_dtype":"float32"})");
  add("wrong", R"({"quant_type":"fp4","blocksize":48,"dtype":"int8","shape":[64,4],)"
               R"("nested_blocksize":128,"nested_dtype":"float16","nested_offset":"x"})");
  add("float32", R"({"quant_type":"nf4","blocksize":"64","dtype":"float32","shape":[4,64],)"
                 R"("nested_blocksize":256,"nested_dtype":"float32","nested_offset":1e99})");
  // Which of the target's tensors, its type, its extent.
  const auto change = [&](const char* name, int tensor, engine::Dtype dtype, int extent) {
    add(name, doubly, {char(tensor), char(dtype), char(extent)});
  };
  change("stored_as_bf16", 0, engine::Dtype::kBF16, 64);
  change("no_codes", 0, engine::Dtype::kU8, 0);
  change("few_codes", 0, engine::Dtype::kU8, 3);
  change("no_scales", 1, engine::Dtype::kU8, 0);
  change("other_scales", 1, engine::Dtype::kF32, 4);
  change("other_book", 2, engine::Dtype::kI32, 16);
  change("other_map", 4, engine::Dtype::kF32, 2);
  change("no_state", 5, engine::Dtype::kU8, 0);
  change("wide_state", 5, engine::Dtype::kF32, 40);
}

void AddQuantized(const Seeds& seeds) {
  const std::string single =
      R"({"quant_type":"nf4","blocksize":64,"dtype":"bfloat16","shape":[4,64])";
  const std::string doubly =
      single + R"(,"nested_blocksize":256,"nested_dtype":"float32","nested_offset":0.01})";
  seeds.Add("quantized", "double", doubly);
  AddFaultyQuantized(seeds, doubly);
  seeds.Add("quantized", "single", single + "}");
  seeds.Add("quantized", "changed", single + "}" + kNul + std::string("\x01\x11\x04", 3));
}

}  // namespace

void AddModelSeeds(const Seeds& seeds) {
  AddSafetensors(seeds);
  AddFaultySafetensors(seeds);
  AddConfigs(seeds);
  AddFaultyConfigs(seeds);
  AddIndexes(seeds);
  AddQuantized(seeds);
}

}  // namespace qlora::tests
