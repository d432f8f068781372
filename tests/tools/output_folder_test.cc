// What is in the output folder stays there: refusals, damaged checkpoints, resumes, kills.

#include <signal.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/checkpoint/output_names.h"
#include "engine/io/crc32c.h"
#include "engine/io/manifest.h"
#include "tests/tools/workplace.h"

namespace qlora::tests {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

class OutputFolder : public Workplace {
 protected:
  void Train() const {
    const CommandResult result = Run("train");
    ASSERT_EQ(result.exit_code, 0) << result.out << result.err;
  }
  std::string Adapter() const { return Read("out/adapter_model.safetensors"); }
};

TEST_F(OutputFolder, BelowAFile) {
  Write("out", "a file");
  const CommandResult result = Run("train");
  EXPECT_EQ(result.exit_code, 74) << result.err;
  EXPECT_THAT(result.err, HasSubstr("output_dir"));
  EXPECT_EQ(Read("out"), "a file");
}

TEST_F(OutputFolder, ThatCannotBeWritten) {
  const CommandResult result = Run("train", {"--set", "output_dir=/proc/sys/run"});
  EXPECT_EQ(result.exit_code, 74) << result.err;
  EXPECT_THAT(result.err, HasSubstr("/proc/sys/run"));
}

TEST_F(OutputFolder, OfAnotherJob) {
  Train();
  ExpectRefused(64, {"another job", "- ", "+ ", "learning_rate", "overwrite_output_dir"},
                {"--set", "training.learning_rate=5e-3"});
}

TEST_F(OutputFolder, OfOtherData) {
  Train();
  Write("data.jsonl", Read("data.jsonl") + "{\"prompt\": \"x\", \"completion\": \"y\"}\n");
  ExpectRefused(64, {"another job", "its data differ"});
}

TEST_F(OutputFolder, OverwrittenOnlyWhenAsked) {
  Train();
  const std::string first = Adapter();
  const CommandResult result =
      Run("train", {"--set", "overwrite_output_dir=true", "--set", "training.learning_rate=5e-3"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_FALSE(Adapter() == first);
}

// The flag may stand in the job's file: a launcher that starts an interrupted job again must not
// begin from scratch each time.
TEST_F(OutputFolder, OverwritingGoesOnWithWhatThisJobHasBegun) {
  Train();
  const std::string first = Adapter();
  fs::remove_all(Path("out/checkpoint-3"));
  fs::remove(Path("out/adapter_model.safetensors"));
  const CommandResult interrupted = Run("train", {"--set", "overwrite_output_dir=true"});
  EXPECT_EQ(interrupted.exit_code, 0) << interrupted.err;
  EXPECT_THAT(interrupted.out, HasSubstr("going on from " + Path("out/checkpoint-2")));
  EXPECT_TRUE(Adapter() == first);
  const CommandResult finished = Run("train", {"--set", "overwrite_output_dir=true"});
  EXPECT_EQ(finished.exit_code, 0) << finished.err;
  EXPECT_THAT(finished.out, Not(HasSubstr("going on from")));
  EXPECT_TRUE(Adapter() == first);
}

// All steps are done, their results are not: nothing of it is trained again.
TEST_F(OutputFolder, OverwritingGoesOnWithARunWhoseResultsAreNotThere) {
  fs::create_directories(Path("out/loss_curve.svg/in the way"));
  const CommandResult failed = Run("train", {"--set", "overwrite_output_dir=true"});
  EXPECT_EQ(failed.exit_code, 74) << failed.err;
  const std::string last = "going on from " + Path("out/checkpoint-3");
  fs::remove_all(Path("out/loss_curve.svg"));
  const CommandResult again = Run("train", {"--set", "overwrite_output_dir=true"});
  EXPECT_EQ(again.exit_code, 0) << again.err;
  EXPECT_THAT(again.out, HasSubstr(last));
  const CommandResult finished = Run("train", {"--set", "overwrite_output_dir=true"});
  EXPECT_EQ(finished.exit_code, 0) << finished.err;
  EXPECT_THAT(finished.out, Not(HasSubstr("going on from")));
}

TEST_F(OutputFolder, OfOtherTokens) {
  Train();
  // Two letters change places in the vocabulary.
  Edit("base/tokenizer.json", "\"a\":97", "\"a\":98");
  Edit("base/tokenizer.json", "\"b\":98", "\"b\":97");
  ExpectRefused(64, {"another job", "gave other tokens", Path("base")});
  const CommandResult anew = Run("train", {"--set", "overwrite_output_dir=true"});
  EXPECT_EQ(anew.exit_code, 0) << anew.err;
}

TEST_F(OutputFolder, OfOtherHeldOutData) {
  Write("held_out.jsonl", "{\"prompt\": \"say phi: \", \"completion\": \"phi\"}\n");
  Write("others.jsonl", "{\"prompt\": \"say chi: \", \"completion\": \"chi\"}\n");
  const std::vector<std::string> held_out = {"--set", "data.eval_file=" + Path("held_out.jsonl")};
  EXPECT_EQ(Run("train", held_out).exit_code, 0);
  ExpectRefused(64, {"another job", "held-out data differ"},
                {"--set", "data.eval_file=" + Path("others.jsonl")});
  EXPECT_EQ(Run("train").exit_code, 0);
  EXPECT_EQ(Run("train", held_out).exit_code, 0);
}

TEST_F(OutputFolder, AnotherGlobalBatchNamesTheFieldThatGivesTheSame) {
  Train();
  ExpectRefused(64, {"another job", "- ", "gradient_accumulation_steps: 2. Give this job"},
                {"--set", "training.gradient_accumulation_steps=4"});
}

// Only what ends in an id of the program's own is left over from it.
TEST_F(OutputFolder, SomebodysHiddenFilesStay) {
  fs::create_directories(Path("out/.tmp-mine/deep"));
  Write("out/.tmp-mine/deep/thesis", "precious");
  Write("out/.tmp-notes.txt", "precious");
  Write("out/.tmp-adapter_model.safetensors-0123456789abcdef", "half");
  Train();
  EXPECT_EQ(Read("out/.tmp-mine/deep/thesis"), "precious");
  EXPECT_EQ(Read("out/.tmp-notes.txt"), "precious");
  EXPECT_FALSE(fs::exists(Path("out/.tmp-adapter_model.safetensors-0123456789abcdef")));
}

// A base that turns out to be broken must not cost the results of the run before.
TEST_F(OutputFolder, OverwritingABrokenJobLosesNothing) {
  Train();
  std::string weights = Read("base/model.safetensors");
  weights.replace(weights.size() - 4, 2, "\xc0\x7f", 2);
  Write("base/model.safetensors", weights);
  ExpectRefused(65, {"NaN or infinity"}, {"--set", "overwrite_output_dir=true"});
}

TEST_F(OutputFolder, OfAModelWithoutCheckpoints) {
  fs::create_directory(Path("out"));
  Write("out/model.safetensors", "somebody's weights");
  ExpectRefused(64, {"model.safetensors", "no checkpoint", "overwrite_output_dir"});
}

TEST_F(OutputFolder, WhatARunLeavesBearsNamesThatNobodyElseIsGiven) {
  Train();
  for (const auto& entry : fs::directory_iterator(Path("out"))) {
    const std::string name = entry.path().filename();
    EXPECT_TRUE(engine::IsOutputName(name)) << name;
  }
}

// What is done is said to be done: nothing but the record of the memory taken is written anew, and
// an empty event file.
TEST_F(OutputFolder, TrainingAgainChangesNothing) {
  Train();
  auto first = Output();
  const CommandResult again = Run("train");
  EXPECT_EQ(again.exit_code, 0) << again.err;
  EXPECT_THAT(again.out, HasSubstr("going on from " + Path("out/checkpoint-3")));
  EXPECT_THAT(again.out, Not(HasSubstr("step 3/3")));
  auto second = Output();
  first.erase("qlora_run.json");
  for (const auto& [name, contents] : first) {
    EXPECT_TRUE(second.contains(name) && second.at(name) == contents) << name;
  }
  const auto sidecar = nlohmann::json::parse(Read("out/qlora_run.json"));
  EXPECT_EQ(sidecar["job"]["sha256"].get<std::string>().size(), 64u);
}

// A link or dots in the path don't hide that results would be written over the model.
TEST_F(OutputFolder, ThatIsTheModelUnderAnotherName) {
  job_ = "mode: FULL overwrite_output_dir: true training { max_steps: 1 }\n";
  fs::create_symlink(Path("base"), Path("link"));
  fs::create_directory(Path("x"));
  for (const char* name : {"link", "x/../base", "base"}) {
    ExpectCommandRefused("train", 64, {"output_dir"}, {"--set", "output_dir=" + Path(name)});
  }
}

TEST_F(OutputFolder, DamagedCheckpointIsNamedAndTheOneBeforeUsed) {
  Train();
  const std::string adapter = Adapter();
  std::string states = Read("out/checkpoint-3/optimizer.safetensors");
  states[states.size() / 2] ^= 1;
  Write("out/checkpoint-3/optimizer.safetensors", states);
  const CommandResult result = Run("train");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("checkpoint-3"));
  EXPECT_THAT(result.err, HasSubstr("damaged"));
  EXPECT_THAT(result.out, HasSubstr("going on from"));
  EXPECT_THAT(result.out, HasSubstr("checkpoint-2"));
  EXPECT_TRUE(Adapter() == adapter);
}

// Rot since it was written must not become the result.
TEST_F(OutputFolder, TheBestCheckpointIsTheResultOnlyWhereItIsWhole) {
  job_ =
      "mode: QLORA training { max_steps: 4 gradient_accumulation_steps: 1 learning_rate: 1 "
      "eval_steps: 1 save_steps: 1 load_best_model_at_end: true } num_threads: 1\n";
  data_ = "format: PROMPT_COMPLETION eval_fraction: 0.25";
  const CommandResult first = Run("train");
  ASSERT_EQ(first.exit_code, 0) << first.err;
  const std::string said = "the best held-out loss was that of " + Path("out/");
  const size_t at = first.out.find(said);
  ASSERT_NE(at, std::string::npos) << first.out;
  const std::string best = "out/" + first.out.substr(at + said.size(), sizeof("checkpoint-1") - 1);
  ASSERT_NE(best, "out/checkpoint-4");
  const std::string adapter = Adapter();
  std::string states = Read(best + "/optimizer.safetensors");
  states[states.size() - 5] ^= 1;
  Write(best + "/optimizer.safetensors", states);

  const CommandResult again = Run("train");
  EXPECT_EQ(again.exit_code, 65) << again.out;
  EXPECT_THAT(again.err, HasSubstr(best + "/optimizer.safetensors is damaged"));
  EXPECT_THAT(again.err, HasSubstr("training.load_best_model_at_end: false"));
  EXPECT_TRUE(Adapter() == adapter);
  EXPECT_EQ(Run("train", {"--set", "training.load_best_model_at_end=false"}).exit_code, 0);
  EXPECT_TRUE(Adapter() == Read("out/checkpoint-4/adapter_model.safetensors"));
}

TEST_F(OutputFolder, WhereAllCheckpointsAreDamagedNothingStartsByItself) {
  Train();
  for (const char* step : {"1", "2", "3"}) {
    Write(absl::StrCat("out/checkpoint-", step, "/run_state.pb"), "x");
  }
  ExpectRefused(65, {"none of the checkpoints", "overwrite_output_dir"});
}

TEST_F(OutputFolder, VerifyTellsWholeFromDamaged) {
  Train();
  EXPECT_EQ(RunEngine({"verify", Path("out")}).exit_code, 0);
  std::string states = Read("out/checkpoint-2/optimizer.safetensors");
  states[states.size() / 2] ^= 1;
  Write("out/checkpoint-2/optimizer.safetensors", states);
  const CommandResult result = RunEngine({"verify", Path("out")});
  EXPECT_EQ(result.exit_code, 65);
  EXPECT_THAT(result.out, HasSubstr("whole    " + Path("out/checkpoint-1")));
  EXPECT_THAT(result.out, HasSubstr("damaged  " + Path("out/checkpoint-2")));
  EXPECT_THAT(result.out, HasSubstr("whole    " + Path("out/checkpoint-3")));
}

// As `train` sees it, which would not go on from it.
TEST_F(OutputFolder, VerifyKnowsACheckpointUnderAnothersName) {
  Train();
  fs::rename(Path("out/checkpoint-2"), Path("out/checkpoint-9"));
  const CommandResult result = RunEngine({"verify", Path("out")});
  EXPECT_EQ(result.exit_code, 65);
  EXPECT_THAT(result.out, HasSubstr("damaged  " + Path("out/checkpoint-9")));
  EXPECT_THAT(result.out, HasSubstr("its manifest is of step 2"));
}

TEST_F(OutputFolder, VerifyLooksAtTheAdapterToo) {
  Train();
  const std::string path = Path("out/adapter_model.safetensors");
  EXPECT_THAT(RunEngine({"verify", Path("out")}).out, HasSubstr("whole    " + path));
  const std::string whole = Adapter();
  std::string weights = whole;
  weights.back() ^= 1;
  Write("out/adapter_model.safetensors", weights);
  const CommandResult rotten = RunEngine({"verify", Path("out")});
  EXPECT_EQ(rotten.exit_code, 65);
  EXPECT_THAT(rotten.out, HasSubstr("damaged  " + path));
  // Its rank and alpha are half of what it does.
  Write("out/adapter_model.safetensors", whole);
  const std::string config = Read("out/adapter_config.json");
  Write("out/adapter_config.json", absl::StrReplaceAll(config, {{"\"r\": 4", "\"r\": 5"}}));
  const CommandResult other = RunEngine({"verify", Path("out")});
  EXPECT_EQ(other.exit_code, 65);
  EXPECT_THAT(other.out, HasSubstr("damaged  " + Path("out/adapter_config.json")));
  Write("out/adapter_config.json", config);
  EXPECT_EQ(RunEngine({"verify", Path("out")}).exit_code, 0);
  fs::remove(path);
  EXPECT_EQ(RunEngine({"verify", Path("out")}).exit_code, 65);
  // Of a run whose checkpoints were removed.
  Write("out/adapter_model.safetensors", weights);
  for (const char* step : {"1", "2", "3"})
    fs::remove_all(Path(absl::StrCat("out/checkpoint-", step)));
  EXPECT_EQ(RunEngine({"verify", Path("out")}).exit_code, 65);
  Write("out/SHA256SUMS", "not a sum");
  EXPECT_THAT(RunEngine({"verify", Path("out")}).out, HasSubstr("SHA256SUMS: line 1"));
}

// Also beside checkpoints: what `quantize` and `merge` leave in the folder, and a result whose sums
// are gone.
TEST_F(OutputFolder, VerifyLooksAtModelsInTheFolder) {
  Train();
  ASSERT_EQ(Run("quantize").exit_code, 0);
  const std::string model = Path("out/quantized");
  EXPECT_THAT(RunEngine({"verify", Path("out")}).out, HasSubstr("whole    " + model + ": "));
  EXPECT_THAT(RunEngine({"verify", model}).out, Not(HasSubstr("step")));
  std::string weights = Read("out/quantized/model.safetensors");
  weights.back() ^= 1;
  Write("out/quantized/model.safetensors", weights);
  fs::remove(Path("out/SHA256SUMS"));
  const CommandResult result = RunEngine({"verify", Path("out")});
  EXPECT_EQ(result.exit_code, 65);
  EXPECT_THAT(result.out, HasSubstr("damaged  " + model));
  EXPECT_THAT(result.out, HasSubstr("unchecked " + Path("out/adapter_model.safetensors")));
}

// A checksum notices rot; only the hash notices one who changes a file and its checksum.
TEST_F(OutputFolder, VerifyHoldsFilesAgainstTheirHashes) {
  Train();
  const std::string folder = Path("out/checkpoint-2");
  auto manifest = engine::ReadManifest(engine::Env::Default(), folder);
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  for (auto& file : *manifest->mutable_files()) {
    if (file.name() != "adapter_config.json") continue;
    std::string text = Read("out/checkpoint-2/adapter_config.json");
    text.replace(text.find("\"r\": 4"), 6, "\"r\": 5");
    Write("out/checkpoint-2/adapter_config.json", text);
    file.set_crc32c(engine::Crc32c(text));
    file.set_chunk_crc32c(0, engine::Crc32c(text));
  }
  Write("out/checkpoint-2/manifest.pb", engine::EncodeManifest(*manifest));
  const CommandResult result = RunEngine({"verify", Path("out")});
  EXPECT_EQ(result.exit_code, 65);
  EXPECT_THAT(result.out, HasSubstr(folder + "/adapter_config.json: its SHA-256 is not"));
  EXPECT_THAT(result.out, HasSubstr("whole    " + Path("out/checkpoint-3")));
}

TEST_F(OutputFolder, VerifyOfWhatIsNone) {
  EXPECT_EQ(RunEngine({"verify", Path("nowhere")}).exit_code, 65);
  const CommandResult result = RunEngine({"verify", Path("base")});
  EXPECT_EQ(result.exit_code, 65);
  EXPECT_THAT(result.err, HasSubstr("base holds nothing that can be checked"));
  EXPECT_THAT(result.out, HasSubstr("unchecked " + Path("base/model.safetensors")));
}

struct Ending {
  const char* name;
  const char* mode;
  int signal;
  int exit_code;  // −1: killed
};

class Interrupted : public OutputFolder, public testing::WithParamInterface<Ending> {};

// Stopped at some step, the run goes on to the bytes of one that was never stopped.
TEST_P(Interrupted, GoesOnToTheSameBytes) {
  job_ = absl::StrCat("mode: ", GetParam().mode,
                      " training { max_steps: 16 gradient_accumulation_steps: 2 save_steps: 2 "
                      "logging_steps: 1 }\nnum_threads: 1\n");
  const char* const weights = std::string(GetParam().mode) == "FULL"
                                  ? "out/model.safetensors"
                                  : "out/adapter_model.safetensors";
  Train();
  const std::string whole = Read(weights), metrics = Read("out/metrics.jsonl");
  ASSERT_FALSE(whole.empty());
  fs::remove_all(Path("out"));
  const CommandResult stopped =
      RunEngine({"train", Path("job.textproto")},
                {.cues = {{"step 5/16", [](int pid) { ::kill(pid, GetParam().signal); }}}});
  EXPECT_EQ(stopped.exit_code, GetParam().exit_code) << stopped.out << stopped.err;
  EXPECT_EQ(stopped.signal, GetParam().signal == SIGKILL ? SIGKILL : 0);
  if (stopped.exit_code > 0) {
    EXPECT_THAT(stopped.err, HasSubstr("the same command goes on from there"));
  }
  ASSERT_FALSE(fs::exists(Path(weights)));
  const CommandResult rest = Run("train");
  ASSERT_EQ(rest.exit_code, 0) << rest.err;
  EXPECT_THAT(rest.out, HasSubstr("going on from"));
  EXPECT_TRUE(Read(weights) == whole);
  EXPECT_EQ(Read("out/metrics.jsonl"), metrics);
}

INSTANTIATE_TEST_SUITE_P(Signals, Interrupted,
                         testing::Values(Ending{"interrupt_qlora", "QLORA", SIGINT, 130},
                                         Ending{"terminate_qlora", "QLORA", SIGTERM, 143},
                                         Ending{"kill_qlora", "QLORA", SIGKILL, -1},
                                         Ending{"terminate_lora", "LORA", SIGTERM, 143},
                                         Ending{"kill_lora", "LORA", SIGKILL, -1},
                                         Ending{"interrupt_full", "FULL", SIGINT, 130},
                                         Ending{"kill_full", "FULL", SIGKILL, -1}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace qlora::tests
