#include "engine/model/families.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "engine/io/json_file.h"
#include "engine/io/model_files.h"
#include "engine/model/config_reader.h"
#include "engine/model/rope_config.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

using Json = nlohmann::json;

// Far above any model, and such that the sum of all parameters stays below 2^59.
constexpr int64_t kMostFeatures = int64_t{1} << 20;
constexpr int64_t kMostVocab = int64_t{1} << 24;
constexpr int64_t kMostHeads = 4096;
constexpr int64_t kMostHeadSize = 4096;
constexpr int64_t kMostLayers = 4096;
constexpr int64_t kMostPositions = int64_t{1} << 30;

// What Transformers assumes where a file leaves a key out.
struct Defaults {
  int64_t max_positions = 0;
  int64_t head_size = 0;  // 0: hidden / heads
  int32_t bos_id = -1, eos_id = -1;
};

kernels::DType ReadDtype(ConfigReader* reader) {
  const Json* old_name = reader->Find("torch_dtype");
  const Json* new_name = reader->Find("dtype");
  if (old_name != nullptr && new_name != nullptr && *old_name != *new_name) {
    reader->Refuse("torch_dtype", absl::StrCat("the same as dtype, ", new_name->dump()));
  }
  const char* key = new_name != nullptr ? "dtype" : "torch_dtype";
  const std::string name = reader->String(key, "float32");
  if (name == "float32") return kernels::DType::kF32;
  if (name == "bfloat16") return kernels::DType::kBf16;
  if (name == "float16") return kernels::DType::kF16;
  reader->Refuse(key, "\"float32\", \"bfloat16\" or \"float16\"");
  return kernels::DType::kF32;
}

// True for a checkpoint whose linears bitsandbytes has quantized to 4 bits.
bool ReadPrequantized(ConfigReader* reader) {
  constexpr char kKey[] = "quantization_config";
  if (!reader->Has(kKey)) return false;
  const auto flag = [&](const char* name) {
    const Json* value = reader->Find(absl::StrCat(kKey, ".", name));
    return value != nullptr && value->is_boolean() && value->get<bool>();
  };
  const std::string method = reader->String(absl::StrCat(kKey, ".quant_method"), "bitsandbytes");
  const bool four_bits = flag("load_in_4bit") || flag("_load_in_4bit");
  const bool eight_bits = flag("load_in_8bit") || flag("_load_in_8bit");
  if (method != "bitsandbytes" || !four_bits || eight_bits) {
    reader->Refuse(kKey,
                   "none, or quant_method \"bitsandbytes\" with load_in_4bit true; use the "
                   "checkpoint that this one was quantized from");
    return false;
  }
  const std::string type_key = absl::StrCat(kKey, ".bnb_4bit_quant_type");
  const std::string type = reader->String(type_key, "fp4");
  if (type != "nf4" && type != "fp4") reader->Refuse(type_key, "\"nf4\" or \"fp4\"");
  return true;
}

// What all families share.
void ReadCommon(ConfigReader* reader, const Defaults& defaults, ModelSpec* spec) {
  spec->hidden = reader->Int("hidden_size", 1, kMostFeatures);
  spec->layers = reader->Int("num_hidden_layers", 1, kMostLayers);
  spec->query_heads = reader->Int("num_attention_heads", 1, kMostHeads);
  spec->kv_heads = reader->Int("num_key_value_heads", 1, kMostHeads, spec->query_heads);
  if (spec->query_heads % spec->kv_heads != 0) {
    reader->Refuse("num_key_value_heads",
                   absl::StrCat("a divisor of num_attention_heads, ", spec->query_heads));
  }
  const int64_t by_division = spec->hidden / spec->query_heads;
  const bool divides = !reader->Has("head_dim") && defaults.head_size == 0;
  if (divides && reader->Has("hidden_size") && spec->hidden % spec->query_heads != 0) {
    reader->Refuse("hidden_size", absl::StrCat("a multiple of num_attention_heads, ",
                                               spec->query_heads, ", where head_dim is absent"));
  }
  spec->head_size = reader->Int("head_dim", 1, kMostHeadSize,
                                defaults.head_size > 0 ? defaults.head_size : by_division);
  // An absent hidden_size is a fault already.
  const bool known = !divides || reader->Has("hidden_size");
  if (known && (spec->head_size % 2 != 0 || spec->head_size == 0)) {
    reader->Refuse("head_dim", absl::StrCat("an even number: rotary embedding turns pairs (here it "
                                            "is ",
                                            spec->head_size, ")"));
  }
  spec->attention_scale = static_cast<float>(1.0 / std::sqrt(double(spec->head_size)));
  spec->intermediate = reader->Int("intermediate_size", 1, kMostFeatures);
  spec->vocab = reader->Int("vocab_size", 1, kMostVocab);
  spec->max_positions =
      reader->Int("max_position_embeddings", 1, kMostPositions, defaults.max_positions);
  spec->rms_epsilon = static_cast<float>(reader->Real("rms_norm_eps", 0.0, true, 1e-6, 1.0));
  spec->initializer_range =
      static_cast<float>(reader->Real("initializer_range", 0.0, false, 0.02, 1.0));
  if (reader->String("hidden_act", "silu") != "silu") reader->Refuse("hidden_act", "\"silu\"");
  spec->activation = kernels::Activation::kSilu;
  spec->tied_embeddings = reader->Bool("tie_word_embeddings", false);
  reader->MustBe("attention_dropout", 0.0, "attention runs without dropout");
  spec->stored_dtype = ReadDtype(reader);
  spec->prequantized = ReadPrequantized(reader);
  spec->rope = ReadRope(reader, spec->head_size, spec->max_positions);
  spec->window.assign(spec->layers, 0);

  spec->eos_ids = reader->TokenIds("eos_token_id", spec->vocab);
  const std::vector<int32_t> bos = reader->TokenIds("bos_token_id", spec->vocab);
  if (bos.size() > 1) reader->Refuse("bos_token_id", "one token id");
  if (!bos.empty()) spec->bos_id = bos.front();
}

// A key that is there and null means "none"; one that is absent means the default of the family.
void ReadTokenDefaults(const Json& config, const Defaults& defaults, ModelSpec* spec) {
  if (!config.contains("bos_token_id") && defaults.bos_id < spec->vocab) {
    spec->bos_id = defaults.bos_id;
  }
  if (!config.contains("eos_token_id") && defaults.eos_id >= 0 && defaults.eos_id < spec->vocab) {
    spec->eos_ids = {defaults.eos_id};
  }
}

// layer_types, where a file holds it, must say `window` for every layer with a window and full
// attention for the others.
void CheckLayerTypes(ConfigReader* reader, const ModelSpec& spec) {
  const Json* types = reader->Find("layer_types");
  if (types == nullptr) return;
  Json expected = Json::array();
  for (const int64_t window : spec.window) {
    expected.push_back(window > 0 ? "sliding_attention" : "full_attention");
  }
  if (*types != expected) {
    reader->Refuse("layer_types", absl::StrCat("null or, as sliding_window has it, ", spec.layers,
                                               " times ", expected.front().dump()));
  }
}

void ReadLlama(const Json& config, ConfigReader* reader, ModelSpec* spec) {
  const Defaults defaults{.max_positions = 2048, .bos_id = 1, .eos_id = 2};
  ReadCommon(reader, defaults, spec);
  ReadTokenDefaults(config, defaults, spec);
  if (spec->hidden % spec->query_heads != 0 && reader->Has("head_dim")) {
    reader->Refuse("hidden_size",
                   absl::StrCat("a multiple of num_attention_heads, ", spec->query_heads));
  }
  spec->qkv_bias = spec->o_bias = reader->Bool("attention_bias", false);
  spec->mlp_bias = reader->Bool("mlp_bias", false);
  if (reader->Has("sliding_window")) {
    reader->Refuse("sliding_window", "null (llama has full attention; mistral has a window)");
  }
  CheckLayerTypes(reader, *spec);
}

void ReadMistral(const Json& config, ConfigReader* reader, ModelSpec* spec) {
  const Defaults defaults{.max_positions = 4096 * 32, .bos_id = 1, .eos_id = 2};
  ReadCommon(reader, defaults, spec);
  ReadTokenDefaults(config, defaults, spec);
  reader->MustBe("attention_bias", false, "mistral has no biases");
  reader->MustBe("mlp_bias", false, "mistral has no biases");
  // Null means full attention; absent means the first release's window.
  const int64_t absent = config.contains("sliding_window") ? 0 : 4096;
  const int64_t window = reader->Int("sliding_window", 1, kMostPositions, absent);
  spec->window.assign(spec->layers, window);
  CheckLayerTypes(reader, *spec);
}

// qwen2 and qwen3: a window on the layers that layer_types names or, without it, from
// max_window_layers on; only where use_sliding_window is true.
void ReadQwenWindow(ConfigReader* reader, ModelSpec* spec) {
  const int64_t declared = reader->Int("sliding_window", 1, kMostPositions, 0);
  const int64_t window = reader->Bool("use_sliding_window", false) ? declared : 0;
  const int64_t first = reader->Int("max_window_layers", 0, kMostLayers, 28);
  for (int64_t layer = first; layer < spec->layers; ++layer) spec->window[layer] = window;

  const Json* types = reader->Find("layer_types");
  if (types == nullptr) return;
  if (!types->is_array() || types->size() != size_t(spec->layers)) {
    reader->Refuse("layer_types", absl::StrCat("null or a list of ", spec->layers, " names"));
    return;
  }
  for (int64_t layer = 0; layer < spec->layers; ++layer) {
    const Json& type = (*types)[layer];
    const bool slides = type == "sliding_attention";
    if (!slides && type != "full_attention") {
      reader->Refuse("layer_types", "\"full_attention\" and \"sliding_attention\"");
      return;
    }
    if (slides && window == 0) {
      reader->Refuse("layer_types",
                     "only \"full_attention\", as use_sliding_window is false or sliding_window "
                     "null");
      return;
    }
    spec->window[layer] = slides ? window : 0;
  }
}

void ReadQwen2(const Json&, ConfigReader* reader, ModelSpec* spec) {
  ReadCommon(reader, {.max_positions = 32768}, spec);
  reader->MustBe("mlp_bias", false, "qwen2 has no biases there");
  spec->qkv_bias = true;  // in no config: part of the family; o_proj has none
  ReadQwenWindow(reader, spec);
}

void ReadQwen3(const Json&, ConfigReader* reader, ModelSpec* spec) {
  ReadCommon(reader, {.max_positions = 32768, .head_size = 128}, spec);
  reader->MustBe("mlp_bias", false, "qwen3 has no biases there");
  spec->qkv_bias = spec->o_bias = reader->Bool("attention_bias", false);
  spec->qk_norm = true;
  ReadQwenWindow(reader, spec);
}

struct Family {
  const char* model_type;
  const char* architecture;
  void (*read)(const Json& config, ConfigReader* reader, ModelSpec* spec);
};
constexpr Family kFamilies[] = {
    {"llama", "LlamaForCausalLM", ReadLlama},
    {"mistral", "MistralForCausalLM", ReadMistral},
    {"qwen2", "Qwen2ForCausalLM", ReadQwen2},
    {"qwen3", "Qwen3ForCausalLM", ReadQwen3},
};

void SortUnique(std::vector<int32_t>* ids) {
  std::sort(ids->begin(), ids->end());
  ids->erase(std::unique(ids->begin(), ids->end()), ids->end());
}

}  // namespace

absl::StatusOr<ModelSpec> ParseModelConfig(absl::string_view config_json,
                                           const std::string& source) {
  absl::StatusOr<Json> config = ParseJson(config_json, source);
  if (!config.ok()) return proto::BadDataError(config.status().message());
  ConfigReader reader(*config, source);
  if (absl::Status status = reader.Finish(); !status.ok()) return status;

  ModelSpec spec;
  spec.family = reader.String("model_type", "");
  const Family* family = std::find_if(std::begin(kFamilies), std::end(kFamilies),
                                      [&](const Family& f) { return spec.family == f.model_type; });
  if (family == std::end(kFamilies)) {
    reader.Refuse("model_type", "\"llama\", \"mistral\", \"qwen2\" or \"qwen3\"");
    return reader.Finish();
  }
  reader.MustBe("architectures", Json::array({family->architecture}),
                "a language model with a head over the vocabulary");
  family->read(*config, &reader, &spec);
  SortUnique(&spec.eos_ids);
  if (absl::Status status = reader.Finish(); !status.ok()) return status;
  return spec;
}

absl::Status AddGenerationConfig(absl::string_view generation_config_json,
                                 const std::string& source, ModelSpec* spec) {
  absl::StatusOr<Json> config = ParseJson(generation_config_json, source);
  if (!config.ok()) return proto::BadDataError(config.status().message());
  ConfigReader reader(*config, source);
  const std::vector<int32_t> ids = reader.TokenIds("eos_token_id", spec->vocab);
  if (absl::Status status = reader.Finish(); !status.ok()) return status;
  spec->eos_ids.insert(spec->eos_ids.end(), ids.begin(), ids.end());
  SortUnique(&spec->eos_ids);
  return absl::OkStatus();
}

absl::StatusOr<ModelSpec> ReadModelConfig(Env* env, const std::string& folder) {
  const std::string path = JoinPath(folder, kConfigFile);
  absl::StatusOr<std::string> text = env->ReadFile(path, kMaxJsonFile);
  if (absl::IsNotFound(text.status())) {
    return proto::MissingFileError(absl::StrCat(
        path, " is missing: a model is a folder in Hugging Face's layout with a config.json"));
  }
  if (!text.ok()) return text.status();
  absl::StatusOr<ModelSpec> spec = ParseModelConfig(*text, path);
  if (!spec.ok()) return spec;

  const std::string generation_path = JoinPath(folder, "generation_config.json");
  absl::StatusOr<std::string> generation = env->ReadFile(generation_path, kMaxJsonFile);
  if (absl::IsNotFound(generation.status())) return spec;
  if (!generation.ok()) return generation.status();
  if (absl::Status status = AddGenerationConfig(*generation, generation_path, &*spec);
      !status.ok()) {
    return status;
  }
  return spec;
}

}  // namespace qlora::engine
