// Writes what the fuzzer begins with: fuzz_seeds tests/fuzz/corpus. Small inputs that the parsers
// accept, from the same builders as the tests'.
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "engine/comm/control_frame.h"
#include "engine/io/adapter_file.h"
#include "engine/io/manifest.h"
#include "engine/io/safetensors_writer.h"
#include "proto/run_state.pb.h"
#include "tests/engine/data/byte_tokenizer.h"
#include "tests/engine/model/config_text.h"
#include "tests/fuzz/fuzz_target.h"

namespace qlora::tests {
namespace {

namespace fs = std::filesystem;

const std::string kNul(1, '\0');

class Seeds {
 public:
  explicit Seeds(fs::path corpus) : corpus_(std::move(corpus)) {}
  void Add(const std::string& target, const std::string& name, const std::string& contents) const {
    fs::create_directories(corpus_ / target);
    std::ofstream(corpus_ / target / absl::StrCat("seed_", name), std::ios::binary) << contents;
  }

 private:
  const fs::path corpus_;
};

std::string ReadBack(FaultyEnv* env, const std::string& path) {
  return *env->ReadFile(path, 1 << 20);
}

void AddModelFiles(const Seeds& seeds) {
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
  seeds.Add("index", "one", R"({"metadata":{"total_size":4},"weight_map":{"t":"a.safetensors"}})");
  seeds.Add("index", "missing", R"({"weight_map":{"t":"c.safetensors","u":"a.safetensors"}})");
  seeds.Add("index", "outside", R"({"weight_map":{"t":"../m/a.safetensors"}})");
}

// Few tokens, one of each part that a file may have.
void AddTokenizers(const Seeds& seeds) {
  const std::string text = "ab  <s>A\xc3\xa9 1\n";
  const auto add = [&](const char* name, const std::string& parts, const std::string& model) {
    seeds.Add("tokenizer", name,
              absl::StrCat("{", parts, "\"model\":{\"type\":\"BPE\",", model, "}}", kNul,
                           R"({"bos_token":"<s>","eos_token":{"content":"<s>"}})", kNul, text));
  };
  const std::string added =
      R"("added_tokens":[{"id":3,"content":"<s>","single_word":false,"lstrip":true,"rstrip":true,)"
      R"("normalized":false,"special":true}],)";
  const std::string model = R"("vocab":{"a":0,"b":1,"ab":2},"merges":[["a","b"]])";
  add("plain", "", model);
  add("byte_level",
      added + R"("pre_tokenizer":{"type":"ByteLevel","add_prefix_space":true,"use_regex":true},)"
              R"("decoder":{"type":"ByteLevel"},)",
      R"("vocab":{"a":0,"b":1,"ab":2},"merges":["a b"],"ignore_merges":true)");
  add("sequence",
      added + R"("normalizer":{"type":"Sequence","normalizers":[{"type":"NFC"},{"type":"Prepend",)"
              R"("prepend":"a"},{"type":"Replace","pattern":{"String":" "},"content":"b"}]},)"
              R"("pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":)"
              R"({"Regex":"\\s+(?!\\S)|\\p{L}+"},"behavior":"Isolated","invert":false},)"
              R"({"type":"Digits","individual_digits":true}]},)",
      model);
  add("metaspace",
      R"("pre_tokenizer":{"type":"Metaspace","replacement":"▁","prepend_scheme":"first"},)"
      R"("decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},)"
      R"("content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ",)"
      R"("start":1,"stop":0}]},)",
      R"("vocab":{"<unk>":0,"a":1,"b":2,"▁":3,"<0xC3>":4,"<0xA9>":5},"merges":[],)"
      R"("byte_fallback":true,"unk_token":"<unk>","fuse_unk":true)");
  add("template",
      added + R"("post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":)"
              R"("<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[],)"
              R"("special_tokens":{"<s>":{"id":"<s>","ids":[3],"tokens":["<s>"]}}},)",
      model);
}

void AddData(const Seeds& seeds) {
  const auto format = [](proto::DataFormat::Value value) { return std::string(1, char(value)); };
  const std::string any = format(proto::DataFormat::AUTO);
  seeds.Add("records", "text", any + "{\"text\":\"a\"}\r\n\n{\"text\":\"\\u00e9\"}");
  seeds.Add("records", "pair", any + R"({"prompt":"a qz","completion":"b<|eot_id|>"})");
  seeds.Add("records", "turns",
            any + R"({"messages":[{"role":"system","content":"s"},{"role":"user","content":)"
                  R"([{"type":"text","text":"u"}]},{"role":"assistant","content":"a"}]})");
  seeds.Add("records", "sharegpt",
            any + R"({"conversations":[{"from":"human","value":"u"},{"from":"gpt","value":"a"}]})");
  seeds.Add("records", "alpaca", any + R"({"instruction":"i","input":"","output":"o"})");
  seeds.Add("records", "ids", any + R"({"input_ids":[1,2,3],"labels":[-100,2,3]})");
  seeds.Add("records", "mask",
            format(proto::DataFormat::PRETOKENIZED) +
                R"({"input_ids":[1,2,3],"labels":[-100,2,-100],"attention_mask":[1,1,0]})");
}

void AddJobs(const Seeds& seeds) {
  const std::string data = " data { train_file: \"d.jsonl\" } ";
  seeds.Add("job", "small", "model: \"m\" output_dir: \"o\"" + data);
  seeds.Add("job", "adapters",
            "model: \"m\" output_dir: \"o\" mode: LORA lora { r: 8 lora_alpha: 16 use_rslora: true "
            "target_modules: [\"q_proj\", \"down_proj\"] }" +
                data + kNul + "training.learning_rate=1e-4");
  seeds.Add("job", "pattern",
            "model: \"m\" lora { target_modules_regex: \".*\\\\.(q|v)_proj\" }" + data);
  seeds.Add("job", "full",
            "mode: FULL model_init { config: \"c\" tokenizer: \"t\" } output_dir: \"o\" training { "
            "max_steps: 5 lr_scheduler_type: COSINE optim: ADAMW_8BIT } memory_limit: \"6GiB\"" +
                data);
  seeds.Add("job", "wrong", "mode: NONE seed: -1 lora { r: 0 }\ntraining { x: 1 " + data);
}

void AddRunFiles(const Seeds& seeds) {
  proto::FolderManifest manifest;
  manifest.set_step(1);
  manifest.set_world(1);
  manifest.set_chunk_bytes(uint64_t(engine::kManifestChunk));
  auto* file = manifest.add_files();
  file->set_name("a");
  file->set_size(8);
  file->set_crc32c(1);
  file->add_chunk_crc32c(1);
  seeds.Add("manifest", "file", kNul + engine::EncodeManifest(manifest));
  seeds.Add("manifest", "newer",
            kNul + engine::EncodeManifest(manifest, engine::kManifestVersion + 1));
  seeds.Add("manifest", "message", "\x01" + manifest.SerializeAsString());

  proto::RunState state;
  seeds.Add("run_state", "empty", state.SerializeAsString());
  state.set_step(3);
  state.set_best_eval_loss(1.5);
  state.set_best_checkpoint("checkpoint-2");
  (*state.mutable_kernel_choices())["linear"] = "fused";
  for (int step = 1; step <= 3; ++step) {
    auto* record = state.add_log_history();
    record->set_step(step);
    record->set_loss(3.0 / step);
    if (step == 1) seeds.Add("run_state", "one", state.SerializeAsString());
  }
  state.add_log_history()->set_eval_loss(0.5);
  seeds.Add("run_state", "several", state.SerializeAsString());

  for (const int64_t r : {1, 2}) {
    FaultyEnv env;
    PutFile(&env, "a/other", "");
    const std::vector<uint8_t> zeros(64);
    engine::AdapterTensors adapter{
        .config = {
            .base_model_name_or_path = "m", .r = r, .lora_alpha = 2, .target_modules = {"q_proj"}}};
    adapter.modules.push_back({.path = "model.layers.0.self_attn.q_proj",
                               .in = 4,
                               .out = 2,
                               .a = absl::MakeConstSpan(zeros).subspan(0, size_t(r) * 8),
                               .b = absl::MakeConstSpan(zeros).subspan(0, size_t(r) * 4)});
    Require(engine::WriteAdapter(&env, "a", adapter).ok(), "an adapter");
    seeds.Add("adapter", absl::StrCat("r", r),
              ReadBack(&env, "a/adapter_config.json") + kNul +
                  ReadBack(&env, "a/adapter_model.safetensors"));
  }
  seeds.Add("adapter", "pattern",
            R"({"peft_type":"LORA","r":1,"lora_alpha":1,"target_modules":".*"})" + kNul);

  const std::string single =
      R"({"quant_type":"nf4","blocksize":64,"dtype":"bfloat16","shape":[4,64])";
  seeds.Add("quantized", "double",
            single + R"(,"nested_blocksize":256,"nested_dtype":"float32","nested_offset":0.01})");
  seeds.Add("quantized", "single", single + "}");
  seeds.Add("quantized", "changed", single + "}" + kNul + std::string("\x01\x11\x04", 3));

  proto::ControlMessage message;
  message.mutable_hello()->set_version("1");
  message.mutable_hello()->set_world(2);
  message.mutable_hello()->set_rank(1);
  const std::string hello = engine::EncodeFrame(message);
  seeds.Add("control", "hello", hello);
  message.mutable_part()->set_what("w");
  message.mutable_part()->set_contents("c");
  seeds.Add("control", "two", hello + engine::EncodeFrame(message));
  message.mutable_abort()->set_exit_code(75);
  seeds.Add("control", "cut", hello + engine::EncodeFrame(message).substr(0, 9));
}

}  // namespace
}  // namespace qlora::tests

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: fuzz_seeds FOLDER\n");
    return 64;
  }
  const qlora::tests::Seeds seeds(argv[1]);
  qlora::tests::AddModelFiles(seeds);
  qlora::tests::AddTokenizers(seeds);
  qlora::tests::AddData(seeds);
  qlora::tests::AddJobs(seeds);
  qlora::tests::AddRunFiles(seeds);
}
