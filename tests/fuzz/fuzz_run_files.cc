// What a run leaves for a later one: checkpoints and adapters; and what ranks tell each other.
#include "engine/checkpoint/result_sums.h"
#include "engine/comm/control_frame.h"
#include "engine/io/adapter_file.h"
#include "engine/io/manifest.h"
#include "engine/report/loss_curve.h"
#include "engine/report/trainer_state.h"
#include "proto/run_state.pb.h"
#include "tests/fuzz/fuzz_target.h"

namespace qlora::tests {

// Checksums keep made-up bytes out: for inputs of kind 1 they are made to fit.
void FuzzManifest(absl::string_view input) {
  std::string bytes(input.empty() ? input : input.substr(1));
  if (TakeByte(&input) % 2 == 1) {
    proto::FolderManifest manifest;
    if (!manifest.ParseFromString(bytes)) return;
    bytes = engine::EncodeManifest(manifest);
  }
  const auto manifest = engine::DecodeManifest(bytes, "manifest.pb");
  if (!manifest.ok()) return;
  for (const auto& file : manifest->files()) {
    Require(engine::IsPlainName(file.name()), "files lie in the folder");
  }
  FaultyEnv env;
  PutFile(&env, "c/manifest.pb", bytes);
  PutFile(&env, "c/a", "contents");
  engine::VerifyFolder(&env, "c", engine::VerifyDepth::kChecksumsAndHashes).status().IgnoreError();
}

void FuzzResultSums(absl::string_view input) {
  FaultyEnv env;
  PutFile(&env, "out/a", "contents");
  Require(engine::WriteResultSums(&env, "out", {"a"}).ok(), "the sum of a file");
  const auto own = engine::ReadResultSums(&env, "out");
  Require(own.ok() && engine::CheckResultSum(&env, "out", own->front()).ok(), "the sum is its own");
  PutFile(&env, engine::JoinPath("out", engine::kResultSumsFile), input);
  const auto sums = engine::ReadResultSums(&env, "out");
  if (!sums.ok()) return;
  for (const engine::ResultSum& sum : *sums) {
    Require(engine::IsPlainName(sum.name) && sum.sha256.size() == 64, "sums are of files there");
    engine::CheckResultSum(&env, "out", sum).IgnoreError();
  }
}

void FuzzRunState(absl::string_view input) {
  proto::RunState state;
  if (!state.ParseFromArray(input.data(), int(input.size()))) return;
  engine::TrainerStateJson({.save_steps = 1}, state);
  engine::LossCurveSvg(state);
}

void FuzzAdapter(absl::string_view input) {
  FaultyEnv env;
  PutFile(&env, "a/adapter_config.json", TakeText(&input));
  PutFile(&env, "a/adapter_model.safetensors", input);
  const auto any = engine::ReadAdapter(&env, "a", {});
  if (!any.ok()) return;
  std::vector<engine::ExpectedModule> expected;
  for (const engine::AdapterModule& m : any->adapter.modules) {
    const int64_t element = engine::DtypeBits(m.dtype) / 8, r = any->adapter.config.r;
    Require(int64_t(m.a.size()) == r * m.in * element && int64_t(m.b.size()) == m.out * r * element,
            "A is r by in, B out by r");
    expected.push_back({m.path, m.in, m.out});
  }
  if (expected.empty()) return;
  Require(engine::ReadAdapter(&env, "a", expected).ok(), "a file holds what it holds");
  // F16 is read only.
  PutFile(&env, "b/other", "");
  if (!engine::WriteAdapter(&env, "b", any->adapter).ok()) return;
  const auto again = engine::ReadAdapter(&env, "b", expected);
  Require(again.ok() && engine::AdapterConfigJson(again->adapter.config) ==
                            engine::AdapterConfigJson(any->adapter.config),
          "an adapter that was written is the one that was read");
}

void FuzzControl(absl::string_view input) {
  std::string arrived(input);
  std::vector<proto::ControlMessage> messages;
  const absl::Status status = engine::TakeMessages(&arrived, &messages);
  size_t taken = 0;
  for (const proto::ControlMessage& message : messages) {
    std::string frame = engine::EncodeFrame(message);
    std::vector<proto::ControlMessage> sent_on;
    Require(engine::TakeMessages(&frame, &sent_on).ok() && sent_on.size() == 1 && frame.empty(),
            "messages can be sent on");
    ++taken;
  }
  Require(int64_t(taken) * engine::kFrameHeader + int64_t(arrived.size()) <= int64_t(input.size()),
          "nothing is made up");
  // Whole messages are taken at once: another look finds nothing more.
  messages.clear();
  Require(engine::TakeMessages(&arrived, &messages).ok() == status.ok() && messages.empty(),
          "a second look finds the same");
}

}  // namespace qlora::tests
