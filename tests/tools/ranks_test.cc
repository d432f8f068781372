// Several processes that train together under mpirun, and what becomes of the others when one of
// them dies, hangs, or wants something else.

#include <signal.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "proto/exit_codes.h"
#include "tests/support/fault_scale.h"
#include "tests/support/thread_ranks.h"
#include "tests/tools/workplace.h"

namespace qlora::tests {
namespace {

using testing::HasSubstr;
using testing::Not;

// A zombie that nobody has waited for does not.
bool Lives(int pid) {
  std::ifstream stat(absl::StrCat("/proc/", pid, "/stat"));
  const std::string text(std::istreambuf_iterator<char>(stat), {});
  const size_t close = text.rfind(") ");
  return close != std::string::npos && text[close + 2] != 'Z';
}

class RanksTest : public Workplace {
 protected:
  // A global batch of four micro-batches, whatever the number of ranks.
  CommandResult Train(int ranks, const std::string& output, int steps, CommandOptions options = {},
                      const std::vector<std::string>& more = {}) const {
    WriteJob();
    options.ranks = ranks;
    std::vector<std::string> words = {
        "train", Path("job.textproto"),
        "--set", absl::StrCat("output_dir=", Path(output)),
        "--set", absl::StrCat("training.gradient_accumulation_steps=", 4 / ranks),
        "--set", absl::StrCat("training.max_steps=", steps),
        "--set", "data.eval_fraction=0.25"};
    words.insert(words.end(), more.begin(), more.end());
    return RunEngine(words, options);
  }

  // What a run leaves that must not tell how it came about.
  std::map<std::string, std::string> Results(const std::string& output, int steps) const {
    const std::string last = absl::StrCat("/checkpoint-", steps, "/optimizer.safetensors");
    return {{"adapter", Read(output + "/adapter_model.safetensors")},
            {"optimizer", Read(output + last)},
            {"log", Losses(output)}};
  }

  // Steps, losses, norms and evaluations; without speeds.
  std::string Losses(const std::string& output) const {
    std::string text;
    for (const auto line : absl::StrSplit(Read(output + "/metrics.jsonl"), '\n')) {
      if (line.empty()) continue;
      nlohmann::json record = nlohmann::json::parse(std::string(line));
      for (const char* name : {"step", "loss", "grad_norm", "eval_loss", "eval_accuracy"}) {
        if (record.contains(name)) absl::StrAppend(&text, name, " ", record[name].dump(), "\n");
      }
    }
    return text;
  }
};

TEST_F(RanksTest, OneTwoAndFourRanksGiveTheSameBytes) {
  constexpr int kSteps = 4;
  ASSERT_EQ(Train(1, "one", kSteps).exit_code, 0);
  const auto expected = Results("one", kSteps);
  ASSERT_THAT(expected.at("log"), HasSubstr("eval_loss"));
  for (const int ranks : {2, 4}) {
    const std::string output = absl::StrCat("of", ranks);
    const CommandResult result = Train(ranks, output, kSteps);
    ASSERT_EQ(result.exit_code, 0) << result.out << result.err;
    EXPECT_TRUE(Results(output, kSteps) == expected) << ranks << " ranks";
    // One of them talks.
    EXPECT_EQ(result.out.find("done: "), result.out.rfind("done: "));
  }
}

// Here a message takes a second, by the job.
TEST_F(RanksTest, ThePlannedTimeCountsTheExchange) {
  const CommandResult result = Train(2, "out", 1, {}, {"--set", "plan.network_latency_seconds=1"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const std::string before = "time, at the rates measured here\n";
  const size_t at = result.out.find(before);
  ASSERT_NE(at, std::string::npos) << result.out;
  EXPECT_GT(std::atof(&result.out[at + before.size()]), 1) << result.out;
}

// What ranks share out can't be told from what they leave; one alone goes on from there.
TEST_F(RanksTest, RanksThatShareOutGiveTheSameBytes) {
  constexpr int kSteps = 4;
  ASSERT_EQ(Train(1, "one", kSteps).exit_code, 0);
  const auto expected = Results("one", kSteps);
  const std::vector<std::string> states = {"--set", "parallel.shard_states=true"};
  std::vector<std::string> both = {"--set", "parallel.shard_base=true"};
  both.insert(both.end(), states.begin(), states.end());
  for (const auto& [ranks, more] : {std::pair{2, both}, {4, states}}) {
    const std::string output = absl::StrCat("of", ranks);
    const CommandResult result = Train(ranks, output, kSteps, {}, more);
    ASSERT_EQ(result.exit_code, 0) << result.out << result.err;
    EXPECT_TRUE(Results(output, kSteps) == expected) << ranks << " ranks";
  }
  std::filesystem::remove_all(Path(absl::StrCat("of2/checkpoint-", kSteps)));
  ASSERT_EQ(Train(1, "of2", kSteps).exit_code, 0);
  EXPECT_TRUE(Results("of2", kSteps) == expected);
}

TEST_F(RanksTest, OneRankKeepsTheQuantizedBaseForAll) {
  constexpr int kSteps = 2;
  ASSERT_EQ(Train(1, "one", kSteps).exit_code, 0);
  const std::vector<std::string> cache = {
      "--set", absl::StrCat("quantization.quantize_cache=", Path("cache"))};
  for (const auto& [output, note] :
       {std::pair{"writes", "the 4-bit base was written to"}, {"reads", "base was loaded from"}}) {
    const CommandResult result = Train(2, output, kSteps, {}, cache);
    ASSERT_EQ(result.exit_code, 0) << result.out << result.err;
    EXPECT_THAT(result.out, HasSubstr(note));
    EXPECT_TRUE(Results(output, kSteps) == Results("one", kSteps)) << output;
  }
}

// Of each machine one rank reads: what it finds wrong ends all with its message and its code.
TEST_F(RanksTest, WhatTheReaderFindsWrongEndsAll) {
  Write("data.jsonl", "{\"prompt\": \"a\", \"completion\": 3}\n");
  const CommandResult result = Train(2, "out", 2);
  EXPECT_EQ(result.exit_code, proto::kExitBadData) << result.err;
  EXPECT_THAT(result.err, HasSubstr("error: "));
  EXPECT_THAT(result.err, HasSubstr("rank 1: error: "));
  EXPECT_THAT(result.err, HasSubstr("data.jsonl:1"));
}

struct Death {
  int ranks, victim, signal;
};

// One; every one in the deep run. tests/fault/lost_rank_test.cc has them without mpirun, and often.
std::vector<Death> Deaths() {
  if (!IsDeep()) return {{2, 1, SIGKILL}};
  std::vector<Death> deaths;
  for (const int ranks : {2, 4}) {
    for (int victim = 0; victim < ranks; ++victim) {
      for (const int signal : {SIGKILL, SIGSEGV}) deaths.push_back({ranks, victim, signal});
    }
  }
  return deaths;
}

class KilledRank : public RanksTest, public testing::WithParamInterface<Death> {};

// Four ranks go on from the last checkpoint, whoever was killed.
TEST_P(KilledRank, EndsAllAndOthersGoOn) {
  const int ranks = GetParam().ranks;
  constexpr int kSteps = 60;
  ASSERT_EQ(Train(1, "undisturbed", kSteps).exit_code, 0);
  std::vector<int> pids;
  std::chrono::steady_clock::time_point killed;
  const CommandResult result =
      Train(ranks, "out", kSteps, {.cues = {{"step 5/", [&](int launcher) {
                                               pids = ProcessesOf(launcher);
                                               ASSERT_EQ(int(pids.size()), ranks);
                                               killed = std::chrono::steady_clock::now();
                                               kill(pids[GetParam().victim], GetParam().signal);
                                             }}}});
  EXPECT_LT(std::chrono::steady_clock::now() - killed, std::chrono::seconds(kSanitized ? 20 : 5));
  EXPECT_NE(result.exit_code, 0);
  ASSERT_EQ(int(pids.size()), ranks);
  const auto patience = killed + std::chrono::seconds(kSanitized ? 20 : 5);
  for (const int pid : pids) {
    while (Lives(pid) && std::chrono::steady_clock::now() < patience) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    EXPECT_FALSE(Lives(pid)) << pid;
  }
  ASSERT_FALSE(Output().contains("adapter_model.safetensors")) << "the kill came too late";
  for (const auto& [name, contents] : Output()) EXPECT_THAT(name, Not(HasSubstr(".tmp")));

  const CommandResult again = Train(4, "out", kSteps);
  ASSERT_EQ(again.exit_code, 0) << again.out << again.err;
  EXPECT_THAT(again.out, HasSubstr("going on from"));
  EXPECT_TRUE(Results("out", kSteps) == Results("undisturbed", kSteps));
}

INSTANTIATE_TEST_SUITE_P(Deaths, KilledRank, testing::ValuesIn(Deaths()), [](const auto& info) {
  const Death& death = info.param;
  return absl::StrCat("rank_", death.victim, "_of_", death.ranks, "_by_signal_", death.signal);
});

TEST_F(RanksTest, AStoppedRankIsNamedAndAllEnd) {
  int stopped = 0;
  std::chrono::steady_clock::time_point begin;
  const CommandResult result =
      Train(2, "out", 1'000'000,
            {.cues = {{"step 5/",
                       [&](int launcher) {
                         stopped = ProcessesOf(launcher)[1];
                         begin = std::chrono::steady_clock::now();
                         kill(stopped, SIGSTOP);
                       }}}},
            {"--set", "parallel.silence_seconds=2", "--set", "training.save_steps=1000"});
  // Two seconds of silence, two to end, and what mpirun takes to be rid of a process that is
  // stopped.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(kSanitized ? 40 : 10));
  EXPECT_EQ(result.exit_code, proto::kExitPeerLost);
  EXPECT_THAT(result.err, HasSubstr("rank 1 was silent for 2 s"));
  EXPECT_THAT(result.err, HasSubstr("the same command goes on"));
}

// To one of the ranks, or to mpirun, which hands it to all and does not wait to pass on what they
// say of it.
TEST_F(RanksTest, ASignalStopsAllAtTheSameStep) {
  for (const bool to_launcher : {false, true}) {
    const std::string output = to_launcher ? "all" : "one";
    const auto send = [&](int launcher) {
      kill(to_launcher ? launcher : ProcessesOf(launcher)[1], SIGTERM);
    };
    const CommandResult result = Train(2, output, 1'000'000, {.cues = {{"step 5/", send}}},
                                       {"--set", "training.save_steps=100000"});
    EXPECT_NE(result.exit_code, 0);
    if (!to_launcher) {
      EXPECT_EQ(result.exit_code, proto::kExitTerminated);
      EXPECT_THAT(result.err, HasSubstr("error: stopped after step "));
      EXPECT_THAT(result.err, HasSubstr("rank 1: error: stopped after step "));
    }
    int checkpoints = 0;
    for (const auto& [name, contents] : TreeOf(Path(output))) {
      checkpoints += name.starts_with("checkpoint-") && name.ends_with("/manifest.pb");
    }
    EXPECT_EQ(checkpoints, 1) << result.out << result.err;
  }
}

// SIGUSR1 mpirun only passes on: unlike on Ctrl-C, behind which it kills after a second, a step may
// take its time. This one takes about that.
TEST_F(RanksTest, ASignalThatTheLauncherPassesOnLeavesTimeForTheCheckpoint) {
  const CommandResult result = Train(
      2, "out", 1'000'000, {.cues = {{"step 1/", [](int launcher) { kill(launcher, SIGUSR1); }}}},
      {"--set", "training.save_steps=100000", "--set",
       "training.gradient_accumulation_steps=4000"});
  EXPECT_EQ(result.exit_code, proto::kExitTerminated) << result.err;
  const std::string after = "error: stopped after step ";
  const size_t at = result.err.find(after);
  ASSERT_NE(at, std::string::npos) << result.err;
  const int step = std::atoi(&result.err[at + after.size()]);
  EXPECT_TRUE(TreeOf(Path("out")).contains(absl::StrCat("checkpoint-", step, "/manifest.pb")))
      << result.err;
}

// One rank is told; all leave the evaluation, also where they gather weights from each other in it.
TEST_F(RanksTest, ASignalInAnEvaluationStopsAll) {
  // Gathering takes longer.
  for (const auto& [shard, times] : {std::pair{"false", 60}, {"true", 3}}) {
    std::string held_out;
    for (int i = 0; i < times; ++i) absl::StrAppend(&held_out, Read("data.jsonl"));
    Write("held_out.jsonl", held_out);
    std::vector<std::string> sets = {
        "--set", "data.eval_fraction=0",
        "--set", absl::StrCat("data.eval_file=", Path("held_out.jsonl")),
        "--set", "training.eval_steps=2",
        "--set", "eval.exact_match=true",
        "--set", "eval.max_new_tokens=20"};
    const std::string alone = absl::StrCat("alone_", times), output = absl::StrCat("two_", times);
    ASSERT_EQ(Train(1, alone, 2, {}, sets).exit_code, 0);
    sets.insert(sets.end(), {"--set", absl::StrCat("parallel.shard_base=", shard)});
    // Without rank 0 the evaluation can't end before the signal is there.
    const auto send = [](int launcher) {
      const std::vector<int> ranks = ProcessesOf(launcher);
      kill(ranks[0], SIGSTOP);
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      kill(ranks[1], SIGTERM);
      kill(ranks[0], SIGCONT);
    };
    const CommandResult stopped = Train(2, output, 2, {.cues = {{"step 2/", send}}}, sets);
    EXPECT_EQ(stopped.exit_code, proto::kExitTerminated) << stopped.err;
    EXPECT_THAT(stopped.err, HasSubstr("rank 1: error: stopped after step 2 of 2"));
    EXPECT_THAT(stopped.out, Not(HasSubstr("step 2  held out"))) << "it was too quick";
    const CommandResult last = Train(2, output, 2, {}, sets);
    ASSERT_EQ(last.exit_code, 0) << last.err;
    EXPECT_TRUE(Results(output, 2) == Results(alone, 2)) << output;
  }
}

// Started by hand, as on machines without a launcher.
TEST_F(RanksTest, RanksWithAnotherJobAreRefused) {
  WriteJob();
  std::filesystem::copy(Path("data.jsonl"), Path("other.jsonl"));
  std::filesystem::copy(Path("base"), Path("other"));
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"--set", "seed=43"}, "+ seed: 43"},
      {{"--set", "training.learning_rate=1e-3"}, "learning_rate: 0.001"},
      {{"--set", "data.max_train_samples=5"}, "max_train_samples: 5"},
      {{"--set", "lora.r=8"}, "r: 8"},
      {{"--set", "lora.lora_dropout=0.1"}, "lora_dropout: 0.1"},
      {{"--set", "mode=LORA"}, "mode: LORA"},
      {{"--set", "quantization.block_size=128"}, "block_size: 128"},
      {{"--set", absl::StrCat("data.train_file=", Path("other.jsonl"))}, "other.jsonl"},
      {{"--set", absl::StrCat("model=", Path("other"))}, "other"},
      // What changes no byte of the result, but what ranks exchange.
      {{"--set", "parallel.shard_base=true"}, "+   shard_base: true"},
      {{"--set", "training.eval_steps=3"}, "eval_steps: 3"},
      {{"--set", "parallel.shard_states=true"}, "+   shard_states: true"},
  };
  std::vector<double> seconds;
  for (const auto& [other, word] : cases) {
    const std::string place = NewRendezvous();
    const auto begin = std::chrono::steady_clock::now();
    const auto words = [&](int rank) -> std::vector<std::string> {
      return {"train", Path("job.textproto"), "--rank", absl::StrCat(rank), "--world",
              "2",     "--rendezvous",        place};
    };
    std::vector<std::string> differing = words(1);
    differing.insert(differing.end(), other.begin(), other.end());
    CommandResult second;
    std::thread thread([&] { second = RunEngine(differing); });
    const CommandResult first = RunEngine(words(0));
    thread.join();
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    for (const CommandResult& result : {first, second}) {
      EXPECT_EQ(result.exit_code, proto::kExitBadJob) << result.err;
      EXPECT_THAT(result.err, HasSubstr("ranks disagree on what to train"));
      EXPECT_THAT(result.err, HasSubstr(word));
    }
    EXPECT_TRUE(Output().empty()) << "nothing is written before they agree";
  }
  // With the start of both programs.
  std::sort(seconds.begin(), seconds.end());
  EXPECT_LT(seconds[seconds.size() / 2], kSanitized ? 20 : 1);
}

TEST_F(RanksTest, OtherCommandsRunAlone) {
  WriteJob();
  const CommandResult result = RunEngine({"inspect", Path("job.textproto"), "--rank", "0",
                                          "--world", "2", "--rendezvous", "localhost:2000"});
  EXPECT_EQ(result.exit_code, proto::kExitBadJob);
  EXPECT_THAT(result.err, HasSubstr("inspect runs in one process"));
}

// Before they wait for each other.
TEST_F(RanksTest, RanksOnCpusAreStartedByMpirun) {
  WriteJob();
  const CommandResult result =
      RunEngine({"train", Path("job.textproto"), "--set", "device=CPU", "--rank", "0", "--world",
                 "2", "--rendezvous", NewRendezvous()});
  EXPECT_EQ(result.exit_code, proto::kExitBadJob);
  EXPECT_THAT(result.err, HasSubstr("start them with mpirun"));
}

}  // namespace
}  // namespace qlora::tests
