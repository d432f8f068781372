// Command `sweep`: every adapter has the files that `train` writes for it alone, also after a kill;
// what is wrong with any of them is told at once; the rank report.

#include <signal.h>

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "tests/tools/workplace.h"

namespace qlora::tests {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class SweepTest : public Workplace {
 protected:
  SweepTest() {
    Write("theirs.jsonl",
          "{\"prompt\": \"a\", \"completion\": \"first\"}\n"
          "{\"prompt\": \"b\", \"completion\": \"second, and longer\"}\n"
          "{\"prompt\": \"c\", \"completion\": \"third\"}\n");
    job_ =
        "training { num_train_epochs: 3 gradient_accumulation_steps: 2 logging_steps: 1\n"
        "  save_steps: 2 eval_steps: 2 learning_rate: 1e-2 save_total_limit: 9 }\n"
        "num_threads: 2\n";
    held_out_ = absl::StrCat("eval_file: '", Path("data.jsonl"), "'");
    data_ += " " + held_out_;
    sweep_ = absl::StrCat(
        "sweep { ranks: 2 ranks: 8\n"
        "  adapter { name: \"theirs\" r: 3 seed: 7 lora_dropout: 0.3 learning_rate: 3e-3\n"
        "    target_modules: \"q_proj\" target_modules: \"up_proj\" train_file: '",
        Path("theirs.jsonl"), "' } }\n");
  }

  // What an adapter's folder holds, but for the time and place of its making.
  std::map<std::string, std::string> Results(const std::string& folder) const {
    std::map<std::string, std::string> files = TreeOf(Path(folder));
    std::erase_if(files, [](const auto& file) {
      return absl::StartsWith(file.first, "runs/") || file.first == "qlora_run.json";
    });
    EXPECT_GT(files.size(), 10u) << folder;
    return files;
  }

  // Trains the three adapters one by one into alone/<name>.
  void TrainAlone() {
    const std::vector<std::pair<std::string, std::vector<std::string>>> jobs = {
        {"r2", {"lora.r=2"}},
        {"r8", {"lora.r=8"}},
        {"theirs",
         {"lora.r=3", "seed=7", "lora.lora_dropout=0.3", "training.learning_rate=3e-3",
          "lora.target_modules=q_proj,up_proj", "data.train_file=" + Path("theirs.jsonl")}}};
    for (const auto& [name, settings] : jobs) {
      std::vector<std::string> words = {"--set", "output_dir=" + Path("alone/" + name)};
      for (const std::string& setting : settings) words.insert(words.end(), {"--set", setting});
      const CommandResult result = Run("train", words);
      ASSERT_EQ(result.exit_code, 0) << result.err;
    }
  }
  void ExpectEqualAlone() {
    for (const std::string name : {"r2", "r8", "theirs"}) {
      const auto alone = Results("alone/" + name), among = Results("out/" + name);
      for (const auto& [file, contents] : alone) {
        ASSERT_TRUE(among.contains(file)) << name << "/" << file;
        EXPECT_TRUE(among.at(file) == contents) << name << "/" << file << " differs";
      }
      EXPECT_EQ(among.size(), alone.size()) << name;
    }
  }

  // Makes the base's last norm so large that gradients are near the end of fp32's range: those of
  // an adapter with a large lora_alpha are beyond it.
  void EnlargeGradients() const {
    std::string file = Read("base/model.safetensors");
    uint64_t header = 0;
    std::memcpy(&header, file.data(), sizeof(header));
    const auto offsets = nlohmann::json::parse(
        file.substr(sizeof(header), header))["model.norm.weight"]["data_offsets"];
    for (size_t at = offsets[0]; at < offsets[1]; at += 2) {
      const uint16_t large = 0x799a;  // 1e35 in bf16
      std::memcpy(file.data() + sizeof(header) + header + at, &large, sizeof(large));
    }
    Write("base/model.safetensors", file);
  }

  std::string held_out_, sweep_;
};

TEST_F(SweepTest, LeavesWhatTrainLeavesForEach) {
  TrainAlone();
  job_ += sweep_;
  const CommandResult result = Run("sweep");
  ASSERT_EQ(result.exit_code, 0) << result.out << result.err;
  ExpectEqualAlone();
  EXPECT_THAT(result.out, HasSubstr("rank"));
  EXPECT_THAT(Read("out/sweep_report.html"), HasSubstr("<svg"));
  EXPECT_THAT(Read("out/sweep_report.json"),
              AllOf(HasSubstr("\"smallest\": \""), HasSubstr("theirs")));
  EXPECT_EQ(RunEngine({"verify", Path("out/theirs")}).exit_code, 0);
  const CommandResult all = RunEngine({"verify", Path("out")});
  EXPECT_EQ(all.exit_code, 0) << all.err;
  EXPECT_THAT(all.out, HasSubstr(Path("out/theirs/adapter_model.safetensors")));
}

// 2,304 rows of each of two adapters, a few of the third's.
TEST_F(SweepTest, AdaptersWithManyRowsPassOneAfterTheOther) {
  std::string lines;
  for (int i = 0; i < 36; ++i) {
    absl::StrAppend(&lines, "{\"prompt\": \"", i, "\", \"completion\": \"",
                    std::string(300, char('0' + i)), "\"}\n");
  }
  Write("data.jsonl", lines);
  job_ = absl::StrReplaceAll(
      job_, {{"training {", "training { per_device_train_batch_size: 36 max_steps: 3"},
             {"num_train_epochs: 3", ""}});
  TrainAlone();
  job_ += sweep_;
  const CommandResult result = Run("sweep");
  ASSERT_EQ(result.exit_code, 0) << result.out << result.err;
  EXPECT_THAT(result.out, HasSubstr("adapters go through the model in 3 groups"));
  ExpectEqualAlone();
}

TEST_F(SweepTest, GoesOnAfterAKill) {
  TrainAlone();
  job_ += sweep_;
  WriteJob();
  const CommandResult killed =
      RunEngine({"sweep", Path("job.textproto")},
                {.cues = {{"r8: step 7/", [](int pid) { ::kill(pid, SIGKILL); }}}});
  ASSERT_EQ(killed.signal, SIGKILL) << killed.out << killed.err;
  const CommandResult resumed = Run("sweep");
  ASSERT_EQ(resumed.exit_code, 0) << resumed.err;
  EXPECT_THAT(resumed.out, HasSubstr("r8: going on from"));
  ExpectEqualAlone();
}

TEST_F(SweepTest, StopsWithACheckpointOfEach) {
  TrainAlone();
  job_ += sweep_;
  WriteJob();
  const CommandResult stopped =
      RunEngine({"sweep", Path("job.textproto")},
                {.cues = {{"r8: step 5/", [](int pid) { ::kill(pid, SIGTERM); }}}});
  ASSERT_EQ(stopped.exit_code, 143) << stopped.out << stopped.err;
  const CommandResult resumed = Run("sweep");
  ASSERT_EQ(resumed.exit_code, 0) << resumed.err;
  for (const std::string name : {"r2", "r8", "theirs"}) {
    EXPECT_EQ(Read("out/" + name + "/adapter_model.safetensors"),
              Read("alone/" + name + "/adapter_model.safetensors"));
  }
}

// Adapters that are done are not trained again because the sweep is not.
TEST_F(SweepTest, OverwritingGoesOnUntilTheReportIsThere) {
  job_ += sweep_ + "overwrite_output_dir: true\n";
  std::filesystem::create_directories(Path("out/sweep_report.html/in the way"));
  const CommandResult failed = Run("sweep");
  EXPECT_EQ(failed.exit_code, 74) << failed.err;
  std::filesystem::remove_all(Path("out/sweep_report.html"));
  std::filesystem::remove(Path("out/r2/.run.unfinished"));  // as killed while the marks go
  const CommandResult again = Run("sweep");
  EXPECT_EQ(again.exit_code, 0) << again.err;
  for (const char* name : {"r2", "r8", "theirs"}) {
    EXPECT_THAT(again.out, HasSubstr(absl::StrCat(name, ": going on from")));
  }
  EXPECT_THAT(Run("sweep").out, Not(HasSubstr("going on from")));
}

TEST_F(SweepTest, OneWhoseNumbersGoBadEndsAloneAndIsNamed) {
  job_.insert(job_.find("save_total_limit"), "max_consecutive_nonfinite: 2 ");
  EnlargeGradients();
  TrainAlone();
  job_ += sweep_;
  job_.insert(job_.find("sweep {") + 7, " adapter { name: \"reckless\" lora_alpha: 1e6 }");
  const CommandResult result = Run("sweep");
  EXPECT_EQ(result.exit_code, 76) << result.out << result.err;
  EXPECT_THAT(result.err, AllOf(HasSubstr("reckless: ends at step 2; the others go on"),
                                HasSubstr("reckless: 2 steps in a row had gradients or a loss"),
                                HasSubstr("is in the gradient of model.layers.")));
  for (const char* other : {"r2: ends", "r8: ends", "theirs: ends"}) {
    EXPECT_THAT(result.err, Not(HasSubstr(other)));
  }
  ExpectEqualAlone();
  EXPECT_FALSE(TreeOf(Path("out")).contains("reckless/adapter_model.safetensors"));
  // Its first step changed nothing and has no loss, not one of 0.
  EXPECT_THAT(Read("out/reckless/metrics.jsonl"),
              AllOf(HasSubstr("{\"step\":1,"), Not(HasSubstr("\"loss\""))));
  for (const char* report : {"out/sweep_report.txt", "out/sweep_report.html"}) {
    EXPECT_THAT(Read(report), AllOf(HasSubstr("reckless"), HasSubstr("its numbers went bad")));
  }
  const auto report = nlohmann::json::parse(Read("out/sweep_report.json"));
  for (const auto& adapter : report["adapter"]) {
    const bool is_bad = adapter["name"] == "reckless";
    EXPECT_EQ(adapter["not_trained"], is_bad ? "its numbers went bad" : "") << adapter;
    EXPECT_EQ(adapter["steps"] != adapter["total_steps"], is_bad) << adapter;
  }
  EXPECT_EQ(report["adapter"].size(), 4u);
  EXPECT_NE(report["smallest"], "reckless");
}

TEST_F(SweepTest, TellsEverythingThatIsWrongAtOnce) {
  job_ +=
      "sweep { adapter { r: 0 } adapter { name: \"a/b\" } adapter { name: \"c\" seed: 1 }\n"
      "  adapter { name: \"c\" target_modules: \"q_proj\" target_modules: \"q_proj\" }\n"
      "  ranks: 4 ranks: 4 learning_rates: 2 }\n";
  ExpectCommandRefused(
      "sweep", 64,
      {"sweep.adapter[0].r: found 0", "sweep.adapter[1].name: found \"a/b\"",
       "sweep.adapter[3]: found the name \"c\"",
       "sweep.adapter[3].target_modules[1]: found \"q_proj\" a second time",
       "sweep.ranks: found the name \"r4-lr2\"", "sweep.learning_rates[0]: found 2"});
}

TEST_F(SweepTest, RefusesNamesOfWhatElseLiesInItsFolder) {
  job_ +=
      "sweep { adapter { name: \"sweep_report.txt\" } adapter { name: \"drift\" }\n"
      "  adapter { name: \"checkpoint-1\" } adapter { name: \"drifting\" } }\n";
  ExpectCommandRefused(
      "sweep", 64,
      {"sweep.adapter[0].name: found \"sweep_report.txt\"",
       "sweep.adapter[1].name: found \"drift\"", "sweep.adapter[2].name: found \"checkpoint-1\""});
}

// More than a billion combinations: counted, not made.
TEST_F(SweepTest, RefusesAGridThatIsASlip) {
  job_ += "sweep {";
  for (int i = 0; i < 1000; ++i) {
    absl::StrAppend(&job_, " ranks: ", 1 + i, " seeds: ", i, " learning_rates: ", 1e-6 * (i + 1));
  }
  job_ += " }\n";
  ExpectCommandRefused("sweep", 64, {"sweep: found 1000000000 adapters; allowed: at most 256"});
}

TEST_F(SweepTest, TellsWhatTheModelDoesNotHaveForAllAdapters) {
  job_ +=
      "sweep { adapter { name: \"a\" target_modules: \"w_proj\" }\n"
      "  adapter { name: \"b\" } adapter { name: \"c\" target_modules: \"x_proj\" } }\n";
  ExpectCommandRefused("sweep", 64,
                       {"sweep.adapter[0] (a): ", "w_proj", "sweep.adapter[2] (c): ", "x_proj"});
}

TEST_F(SweepTest, IsRefusedWhereNothingIsSharedOrAsked) {
  ExpectCommandRefused("sweep", 64, {"sweep: not given"});
  ExpectCommandRefused("sweep", 64, {"sweep: found a sweep in mode FULL"},
                       {"--set", "mode=FULL", "--set", "sweep.ranks=2"});
  ExpectCommandRefused("sweep", 64, {"sweep.raise_rank: found true with one rank"},
                       {"--set", "sweep.raise_rank=true", "--set", "sweep.ranks=2"});
  job_ += absl::StrCat("sweep { raise_rank: true adapter { r: 2 } adapter { r: 4 eval_file: '",
                       Path("theirs.jsonl"), "' } }\n");
  ExpectCommandRefused("sweep", 64,
                       {"sweep.raise_rank: found true with several sets of held-out data"});
}

// Each by its name, and all of them.
TEST_F(SweepTest, GatesAreEachAdaptersOwn) {
  job_ += "sweep { ranks: 1 adapter { name: \"unhurried\" learning_rate: 1e-9 } }\n";
  const CommandResult result = Run("sweep", {"--set", "gates.max_eval_loss_increase=-0.001"});
  EXPECT_EQ(result.exit_code, 79) << result.err;
  EXPECT_THAT(result.err, HasSubstr("unhurried: gates.max_eval_loss_increase missed"));
  EXPECT_THAT(result.err, Not(HasSubstr("r1: gates")));
  EXPECT_THAT(result.out, HasSubstr("r1: gates.max_eval_loss_increase passed"));
  for (const std::string name : {"r1", "unhurried"}) {
    EXPECT_NE(Read("out/" + name + "/adapter_model.safetensors"), "") << name;
  }
  const auto report = nlohmann::json::parse(Read("out/sweep_report.json"));
  EXPECT_EQ(report["smallest"], "r1");
  for (const auto& adapter : report["adapter"]) {
    ASSERT_EQ(adapter["gates"].size(), 1u);
    EXPECT_EQ(adapter["gates"][0]["passed"], adapter["name"] == "r1");
    EXPECT_EQ(adapter["gates"][0]["limit"], -0.001);
    EXPECT_EQ(adapter["good_enough"], adapter["name"] == "r1");
  }
  for (const char* file : {"out/sweep_report.txt", "out/sweep_report.html"}) {
    EXPECT_THAT(Read(file), HasSubstr("unhurried: gates.max_eval_loss_increase missed"));
  }
}

TEST_F(SweepTest, RaisesTheRankWhileGatesAreMissed) {
  job_ += "sweep { ranks: 1 ranks: 2 ranks: 4 raise_rank: true tolerance: 1 }\n";
  const CommandResult result = Run("sweep", {"--set", "gates.max_eval_loss_increase=-50"});
  EXPECT_EQ(result.exit_code, 79) << result.err;
  EXPECT_NE(Read("out/r4/adapter_model.safetensors"), "");
  EXPECT_THAT(result.out,
              AllOf(HasSubstr("no rank passes the gates yet: raised again"),
                    HasSubstr("no rank passes the gates; the best is"), Not(HasSubstr("enough"))));
}

// An answer is longer than one token: none is right.
TEST_F(SweepTest, RaisesTheRankByTheLossWhereNoAnswerIsRight) {
  job_ +=
      "sweep { ranks: 1 ranks: 2 ranks: 4 raise_rank: true tolerance: 0 }\n"
      "eval { exact_match: true max_new_tokens: 1 }\n";
  const CommandResult result = Run("sweep");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, AllOf(HasSubstr("raising the rank gained"),
                                Not(HasSubstr("raising the rank gained 0.00 %")),
                                HasSubstr("compared by held-out loss: all have the same share of "
                                          "answers right, 0.0 %")));
  EXPECT_EQ(nlohmann::json::parse(Read("out/sweep_report.json"))["metric"], "LOSS");
}

TEST_F(SweepTest, AGateNeedsTheHeldOutDataOfEach) {
  data_ = "format: PROMPT_COMPLETION";
  job_ += absl::StrCat("sweep { adapter { eval_file: '", Path("data.jsonl"), "' } adapter {} }\n");
  ExpectCommandRefused("sweep", 64, {"gates.max_eval_loss_increase: found a gate without"},
                       {"--set", "gates.max_eval_loss_increase=0"});
}

// A tolerance that no step of ranks can beat ends it behind the second rank.
TEST_F(SweepTest, RaisesTheRankWhileItGains) {
  job_ += "sweep { ranks: 8 ranks: 1 ranks: 4 raise_rank: true tolerance: 1 }\n";
  const CommandResult result = Run("sweep");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, AllOf(HasSubstr("that is enough"), HasSubstr("rank 1 is enough")));
  EXPECT_NE(Read("out/r1/adapter_model.safetensors"), "");
  EXPECT_NE(Read("out/r4/adapter_model.safetensors"), "");
  EXPECT_FALSE(TreeOf(Path("out")).contains("r8/"));
  EXPECT_THAT(Read("out/sweep_report.json"), HasSubstr("not needed"));
}

}  // namespace
}  // namespace qlora::tests
