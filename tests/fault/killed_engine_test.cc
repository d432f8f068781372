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
        if (signals.size() == 1) {
          EXPECT_THAT(result.err, HasSubstr("stopped after step"));
        }
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
};

TEST_F(KilledEngine, GoesOnToTheSameBytes) {
  std::mt19937_64 random(FaultSeed());
  Torment(Times(20, 200), &random, [] { return Signals{SIGKILL}; });
}

TEST_F(KilledEngine, StopsWhenAskedAtAnyMoment) {
  std::mt19937_64 random(FaultSeed());
  Torment(Times(20, 200), &random, [&] { return Signals{random() % 2 == 0 ? SIGTERM : SIGINT}; });
}

// The second does not wait for the checkpoint that the first asks for, and tears none.
TEST_F(KilledEngine, EndsAtOnceWhenAskedTwice) {
  std::mt19937_64 random(FaultSeed());
  Torment(Times(10, 200), &random, [] { return Signals{SIGINT, SIGTERM}; });
}

}  // namespace
}  // namespace qlora::tests
