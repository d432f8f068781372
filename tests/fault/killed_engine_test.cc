// qlora_engine, killed or asked to stop at random moments until it is done, leaves what it would
// have left undisturbed.
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "tests/support/fault_scale.h"
#include "tests/tools/workplace.h"

namespace qlora::tests {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr int kSteps = 400;

class KilledEngine : public Workplace {
 protected:
  KilledEngine() {
    job_ = absl::StrCat("mode: QLORA training { max_steps: ", kSteps,
                        " gradient_accumulation_steps: 2 save_steps: 5 logging_steps: 10 "
                        "learning_rate: 1e-3 } lora { r: 4 } num_threads: 1\n");
    data_ = "format: PROMPT_COMPLETION eval_fraction: 0.25";
  }

  // What must not tell how a run came about: weights, states, where it stands in the data, log.
  std::map<std::string, std::string> Results() const {
    std::map<std::string, std::string> results;
    for (const auto& [name, contents] : Output()) {
      const std::string last = absl::StrCat("checkpoint-", kSteps, "/");
      if (name == "adapter_model.safetensors" || name == last + "optimizer.safetensors" ||
          name == last + "adapter_model.safetensors" || name == last + "trainer_state.json") {
        results[name] = contents;
      }
    }
    for (const auto line : absl::StrSplit(Read("out/metrics.jsonl"), '\n')) {
      if (line.empty()) continue;
      const nlohmann::json record = nlohmann::json::parse(std::string(line));
      for (const char* name : {"step", "loss", "grad_norm", "eval_loss"}) {
        if (record.contains(name)) absl::StrAppend(&results["log"], record[name].dump(), " ");
      }
    }
    return results;
  }

  // All of the output but what tells of time or of this start: the log, states and weights of each
  // checkpoint.
  std::map<std::string, std::string> FilesThatMustNotTell() const {
    std::map<std::string, std::string> files;
    for (const auto& [name, contents] : Output()) {
      if (absl::EndsWith(name, ".safetensors") || absl::EndsWith(name, "trainer_state.json") ||
          name == "metrics.jsonl") {
        files[name] = contents;
      }
    }
    return files;
  }

  // That what a stopped run says is so: a checkpoint of its last step is there, or it had nothing
  // to save. Whether there was a step.
  bool ExpectStopped(const std::string& said) {
    const std::string after = "stopped after step ";
    const size_t at = said.find(after);
    if (at == std::string::npos) {
      EXPECT_THAT(said, HasSubstr("there was nothing to save"));
      return false;
    }
    const int step = std::atoi(&said[at + after.size()]);
    EXPECT_TRUE(Output().contains(absl::StrCat("checkpoint-", step, "/manifest.pb"))) << said;
    return true;
  }

  // Starts the run again and again, each time ended by signals that `choose` gives after a time
  // drawn from `random`, until so many have hit; then lets it finish.
  using Signals = std::vector<int>;
  void Torment(int hits, std::mt19937_64* random, const std::function<Signals()>& choose) {
    const auto begin = std::chrono::steady_clock::now();
    ASSERT_EQ(Run("train").exit_code, 0);
    const std::chrono::duration<double> whole = std::chrono::steady_clock::now() - begin;
    const auto undisturbed = Results();
    ASSERT_EQ(undisturbed.size(), 5u);
    fs::remove_all(Path("out"));

    int hit = 0;
    for (int i = 0; hit < hits; ++i) {
      if (fs::exists(Path("out/adapter_model.safetensors"))) fs::remove_all(Path("out"));
      // One in four is hit early, while it finds its way back.
      std::uniform_real_distribution<double> life(0, whole.count() * (i % 4 == 3 ? 0.1 : 0.7));
      const std::chrono::duration<double> wait(life(*random));
      const Signals signals = choose();
      SCOPED_TRACE(
          absl::StrCat("signals ", absl::StrJoin(signals, ", "), " after ", wait.count(), " s"));
      std::thread killer;
      const CommandResult result =
          RunEngine({"train", Path("job.textproto")}, {.on_start = [&](int pid) {
                      killer = std::thread([=] {
                        std::this_thread::sleep_for(wait);
                        for (const int signal : signals) kill(pid, signal);
                      });
                    }});
      killer.join();
      if (result.exit_code == 0) continue;  // done before
      ++hit;
      if (signals.front() == SIGKILL) {
        ASSERT_EQ(result.signal, SIGKILL);
      } else if (result.signal == 0) {  // else it came before the handler was there
        EXPECT_THAT(signals, testing::Contains(result.exit_code - 128)) << result.err;
        if (signals.size() == 1) stops_ += ExpectStopped(result.err);
      }
      for (const auto& [name, contents] : Output()) {
        // No name of a checkpoint without all of it.
        if (absl::StartsWith(name, "checkpoint-") && absl::EndsWith(name, "/") &&
            std::count(name.begin(), name.end(), '/') == 1) {
          EXPECT_TRUE(Output().contains(name + "manifest.pb")) << name;
        }
      }
    }
    const CommandResult last = Run("train");
    ASSERT_EQ(last.exit_code, 0) << last.err;
    EXPECT_TRUE(Results() == undisturbed);
    for (const auto& [name, contents] : Output()) EXPECT_FALSE(absl::StartsWith(name, ".tmp"));
  }

  int stops_ = 0;  // of runs that had done a step
};

TEST_F(KilledEngine, GoesOnToTheSameBytes) {
  std::mt19937_64 random(FaultSeed());
  Torment(Times(20, 200), &random, [] { return Signals{SIGKILL}; });
}

TEST_F(KilledEngine, StopsWhenAskedAtAnyMoment) {
  std::mt19937_64 random(FaultSeed());
  Torment(Times(20, 200), &random, [&] { return Signals{random() % 2 == 0 ? SIGTERM : SIGINT}; });
  EXPECT_GT(stops_, 0);
}

// The second does not wait for the checkpoint that the first asks for, and tears none.
TEST_F(KilledEngine, EndsAtOnceWhenAskedTwice) {
  std::mt19937_64 random(FaultSeed());
  Torment(Times(10, 200), &random, [] { return Signals{SIGINT, SIGTERM}; });
}

// In a step of a second: the first signal alone would have it finished and saved.
TEST_F(KilledEngine, EndsWithinAStepWhenAskedTwice) {
  const auto ask_twice = [](int pid) {
    for (const int signal : {SIGINT, SIGTERM}) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      kill(pid, signal);
    }
  };
  const CommandResult result =
      Run("train",
          {"--set", "training.max_steps=2", "--set", "training.logging_steps=1", "--set",
           "training.gradient_accumulation_steps=30000"},
          {.cues = {{"step 1/", ask_twice}}});
  EXPECT_EQ(result.exit_code, 128 + SIGTERM) << result.err;
  EXPECT_EQ(result.err, "");
  EXPECT_FALSE(Output().contains("checkpoint-2/")) << "the step was done all the same";
}

// The checkpoint of the step before is there at once; the run that goes on evaluates, and leaves
// what an undisturbed one does.
TEST_F(KilledEngine, StopsWithinAnEvaluation) {
  std::string held_out;
  for (int i = 0; i < 20; ++i) absl::StrAppend(&held_out, Read("data.jsonl"));
  Write("held_out.jsonl", held_out);
  data_ = absl::StrCat("format: PROMPT_COMPLETION eval_file: '", Path("held_out.jsonl"), "'");
  const std::vector<std::string> sets = {
      "--set", "training.max_steps=4",  "--set", "training.logging_steps=1",
      "--set", "training.eval_steps=2", "--set", "training.save_steps=2",
      "--set", "eval.exact_match=true", "--set", "eval.max_new_tokens=40"};
  using Clock = std::chrono::steady_clock;
  const Clock::time_point begin = Clock::now();
  ASSERT_EQ(Run("train", sets).exit_code, 0);
  // Before the first step, and behind two.
  const Clock::duration an_evaluation = (Clock::now() - begin) / 3;
  const std::map<std::string, std::string> undisturbed = FilesThatMustNotTell();
  fs::remove_all(Path("out"));

  Clock::time_point asked;
  const auto ask = [&](int pid) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    asked = Clock::now();
    kill(pid, SIGTERM);
  };
  const CommandResult stopped = Run("train", sets, {.cues = {{"step 2/", ask}}});
  EXPECT_LT(Clock::now() - asked, an_evaluation / 2);
  EXPECT_EQ(stopped.exit_code, 128 + SIGTERM) << stopped.err;
  EXPECT_THAT(stopped.err, HasSubstr("stopped after step 2 of 4"));
  EXPECT_THAT(stopped.out, testing::Not(HasSubstr("step 2  held out"))) << "it was too quick";
  EXPECT_TRUE(ExpectStopped(stopped.err));
  const CommandResult last = Run("train", sets);
  ASSERT_EQ(last.exit_code, 0) << last.err;
  EXPECT_THAT(last.out, HasSubstr("step 2  held out"));
  EXPECT_TRUE(FilesThatMustNotTell() == undisturbed);
}

}  // namespace
}  // namespace qlora::tests
