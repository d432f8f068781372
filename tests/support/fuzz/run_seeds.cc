// Seeds of what a run leaves for a later one, and of what ranks tell each other.
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/comm/control_frame.h"
#include "engine/io/adapter_file.h"
#include "engine/io/crc32c.h"
#include "engine/io/manifest.h"
#include "engine/io/safetensors_writer.h"
#include "engine/io/sha256.h"
#include "nlohmann/json.hpp"
#include "proto/run_state.pb.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/support/fuzz/seeds.h"

namespace qlora::tests {
namespace {

void AddFaultyAdapters(const Seeds& seeds) {
  const std::string good = R"({"peft_type":"LORA","r":1,"lora_alpha":1.5,"target_modules":["q"]})";
  int number = 0;
  for (const char* patch :
       {R"({"peft_type":"IA3"})", R"({"use_dora":true})", R"({"bias":"all"})",
        R"({"init_lora_weights":"pissa"})", R"({"init_lora_weights":7})", R"({"r":0})",
        R"({"lora_alpha":"x"})", R"({"lora_dropout":1})", R"({"use_rslora":1})",
        R"({"target_modules":7})", R"({"target_modules":[7]})"}) {
    auto config = nlohmann::json::parse(good);
    config.merge_patch(nlohmann::json::parse(patch));
    seeds.Add("adapter", absl::StrCat("config_", number++), config.dump() + kNul);
  }
  seeds.Add("adapter", "no_object", "[]" + kNul);
  seeds.Add("adapter", "no_config", kNul);

  FaultyEnv env;
  const std::vector<uint8_t> zeros(64);
  const std::string a = "base_model.model.q.lora_A.weight", b = "base_model.model.q.lora_B.weight";
  const auto file = [&](const char* name, const std::vector<engine::TensorSpec>& specs) {
    std::vector<engine::TensorData> tensors;
    for (const engine::TensorSpec& spec : specs) {
      const int64_t bytes = *engine::TensorBytes(spec.dtype, spec.shape, spec.name);
      tensors.push_back({spec, absl::MakeConstSpan(zeros).subspan(0, size_t(bytes))});
    }
    Require(engine::WriteSafetensors(&env, name, tensors).ok(), "a file of a few tensors");
    seeds.Add("adapter", name,
              R"({"peft_type":"LORA","r":1,"lora_alpha":1.5,"lora_dropout":0.1,)"
              R"("use_rslora":true,"init_lora_weights":"gaussian","bias":"none",)"
              R"("target_modules":["q"]})" +
                  kNul + ReadBack(&env, name));
  };
  using engine::Dtype;
  file("float32", {{a, Dtype::kF32, {1, 4}}, {b, Dtype::kF32, {2, 1}}});
  file("float16", {{a, Dtype::kF16, {1, 4}}, {b, Dtype::kF16, {2, 1}}});
  file("bytes", {{a, Dtype::kU8, {1, 4}}, {b, Dtype::kU8, {2, 1}}});
  file("two_types", {{a, Dtype::kF32, {1, 4}}, {b, Dtype::kBF16, {2, 1}}});
  file("other_rank", {{a, Dtype::kF32, {2, 4}}, {b, Dtype::kF32, {2, 2}}});
  file("half", {{a, Dtype::kF32, {1, 4}}});
  file("other_half", {{b, Dtype::kF32, {2, 1}}});
  file("nothing", {});
  file("strangers", {{"base_model.model.q.lora_magnitude_vector", Dtype::kF32, {1}},
                     {"base_model.model.q.lora_embedding_A", Dtype::kF32, {1}},
                     {"base_model.model.q.bias", Dtype::kF32, {1}},
                     {"s0", Dtype::kF32, {1}},
                     {"s1", Dtype::kF32, {1}},
                     {"s2", Dtype::kF32, {1}},
                     {"s3", Dtype::kF32, {1}},
                     {"s4", Dtype::kF32, {1}},
                     {"s5", Dtype::kF32, {1}},
                     {"s6", Dtype::kF32, {1}},
                     {"s7", Dtype::kF32, {1}}});
}

}  // namespace

void AddRunSeeds(const Seeds& seeds) {
  // Of the file that the target puts there, of another, and of none.
  const std::string sum = engine::Sha256Hex("contents");
  seeds.Add("result_sums", "whole", absl::StrCat(sum, "  a\n"));
  seeds.Add("result_sums", "other",
            absl::StrCat(engine::Sha256Hex("others"), "  a\n\n", sum, "  b\n"));
  seeds.Add("result_sums", "path", absl::StrCat(sum, "  ../a\n"));
  seeds.Add("result_sums", "digits", absl::StrCat("x", sum.substr(1), "  a\n"));
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
  const auto changed = [&](const char* name, const auto& change) {
    proto::FolderManifest other = manifest;
    change(&other, other.mutable_files(0));
    seeds.Add("manifest", name, "\x01" + other.SerializeAsString());
  };
  // Of the file that the target puts there.
  file->set_crc32c(engine::Crc32c("contents"));
  file->set_chunk_crc32c(0, engine::Crc32c("contents"));
  engine::Sha256 sha256;
  sha256.Update("contents");
  file->set_sha256(sha256.Finish());
  changed("whole", [](auto*, auto*) {});
  changed("other_hash", [](auto*, auto* file) { file->set_sha256("x"); });
  changed("other_checksum", [](auto*, auto* file) { file->set_crc32c(1); });
  changed("other_chunk", [](auto*, auto* file) { file->set_chunk_crc32c(0, 1); });
  changed("missing", [](auto*, auto* file) { file->set_name("b"); });
  changed("other_size", [](auto*, auto* file) { file->set_size(7); });
  changed("chunks", [](auto*, auto* file) { file->add_chunk_crc32c(1); });
  changed("name", [](auto*, auto* file) { file->set_name("../a"); });
  changed("twice",
          [](auto* all, auto* file) { *all->add_files() = proto::FolderManifest::File(*file); });
  changed("step", [](auto* all, auto*) { all->set_step(-1); });
  changed("chunk_bytes", [](auto* all, auto*) { all->set_chunk_bytes(0); });
  changed("small_chunks", [](auto* all, auto* file) {
    all->set_chunk_bytes(5);
    file->set_chunk_crc32c(0, engine::Crc32c("conte"));
    file->add_chunk_crc32c(engine::Crc32c("nts"));
  });
  std::string damaged = engine::EncodeManifest(manifest);
  damaged.back() ^= 1;
  seeds.Add("manifest", "damaged", kNul + damaged);

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
  AddFaultyAdapters(seeds);

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
  seeds.Add("control", "stranger", "GET / HTTP/1.1");
  seeds.Add("control", "no_message", hello.substr(0, 4) + std::string("\x01\0\0\0\xff", 5));
  seeds.Add("control", "cut", hello + engine::EncodeFrame(message).substr(0, 9));
}

}  // namespace qlora::tests
