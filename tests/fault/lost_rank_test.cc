// Ranks, as processes, one of which dies or stops in the middle of a step: the others end in time
// and say who it was, no checkpoint is torn, and whoever goes on comes to the bytes of a run that
// lost nobody.
//
// tests/tools/ranks_test.cc does the same to the program under mpirun, a few times.
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/comm/now.h"
#include "engine/comm/ranks.h"
#include "engine/io/manifest.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/exit_codes.h"
#include "tests/engine/io/temp_folder.h"
#include "tests/engine/run/model_run.h"
#include "tests/support/command_line.h"
#include "tests/support/fault_scale.h"
#include "tests/support/rank_processes.h"
#include "tests/support/socket_mesh.h"

namespace qlora::engine {
namespace {

using testing::HasSubstr;
using tests::ProcessOutcome;
using tests::RankProcesses;

constexpr char kModel[] = "llama3_tied";
constexpr int kMicroBatches = 4;  // of the global batch
constexpr double kSecondsToEnd = tests::kSanitized ? 20 : 5;

// Rank `victim` gets `signal` after it has begun so many steps, within that step.
struct Fault {
  int victim = -1;
  int signal = 0;
  int64_t steps = 0;
};

void Strike(int signal) {
  const rlimit no_core{0, 0};
  ::setrlimit(RLIMIT_CORE, &no_core);
  ::signal(signal, SIG_DFL);  // a sanitizer's handler
  ::raise(signal);
}

// Goes on from the newest checkpoint in `folder` up to step `until`, and saves after each.
class Training {
 public:
  Training(Ranks* ranks, const std::string& folder)
      : ranks_(ranks),
        folder_(folder),
        data_(GoldenDocuments(kModel)),
        run_({.model = kModel, .record = Options()}, CpuDevice(1)) {}

  absl::Status Run(int64_t until, const Fault& fault) {
    if (absl::Status s = Resume(); !s.ok()) return s;
    const int64_t begin = state_.step();
    while (state_.step() < until) {
      const bool strikes = rank() == fault.victim && state_.step() - begin == fault.steps;
      if (absl::Status s = Step(strikes ? fault.signal : 0); !s.ok()) return s;
      if (rank() != 0) continue;
      const OutputFiles files{.adapter = {.r = 4, .lora_alpha = 8, .target_modules = {"q_proj"}}};
      absl::Status saved =
          SaveCheckpoint(Env::Default(), folder_, &run_.execution(), files, state_);
      if (saved.ok()) saved = RemoveOldest(Env::Default(), folder_, state_.step(), 2, "").status();
      if (!saved.ok()) return saved;
    }
    return absl::OkStatus();
  }

 private:
  int rank() const { return ranks_ == nullptr ? 0 : ranks_->rank(); }
  int size() const { return ranks_ == nullptr ? 1 : ranks_->size(); }

  RecordOptions Options() const {
    RecordOptions options = TrainingOptions(kModel, data_, 1, kMicroBatches);
    options.storage.ranks = size();
    options.storage.pending_gradients = PendingGradients(kMicroBatches / size());
    return options;
  }

  absl::Status Resume() {
    std::string path;
    if (rank() == 0) {
      const auto newest = FindNewestValid(Env::Default(), folder_);
      if (!newest.ok()) return newest.status();
      path = newest->path.value_or("");
    }
    if (ranks_ != nullptr) {
      const auto agreed = ranks_->control().FromFirst("where to begin", path);
      if (!agreed.ok()) return agreed.status();
      path = *agreed;
    }
    if (path.empty()) return absl::OkStatus();
    const auto state = LoadCheckpoint(Env::Default(), path, &run_.execution());
    if (!state.ok()) return state.status();
    state_ = *state;
    return absl::OkStatus();
  }

  absl::Status Step(int signal) {
    const int64_t number = state_.step();
    if (ranks_ != nullptr) {
      ranks_->control().Enter(Phase::kComputing, absl::StrCat("step ", number + 1));
    }
    const Batcher batcher(&data_,
                          {.rows_per_micro_batch = 1, .micro_batches_per_step = kMicroBatches});
    const std::vector<MicroBatch> batch = batcher.Step(number);
    const int64_t mine = kMicroBatches / size();
    TrainStep step(&run_.execution(), {.micro_batches = mine, .tree_sum = true},
                   ranks_ == nullptr ? nullptr : &ranks_->comm());
    const auto result = step.Run({.seed = 3,
                                  .step = number,
                                  .updates = number,
                                  .learning_rate = 1e-3,
                                  .trained_tokens = Batcher::TrainedTokens(batch)},
                                 [&](int64_t j) -> absl::StatusOr<MicroBatchInputs> {
                                   if (signal != 0) Strike(signal);
                                   return batch[j].inputs();
                                 });
    if (!result.ok()) return result.status();
    state_.set_step(number + 1);
    state_.add_log_history()->set_loss(result->loss_sum);
    return absl::OkStatus();
  }

  Ranks* const ranks_;
  const std::string folder_;
  const Dataset data_;
  ModelRun run_;
  proto::RunState state_;
};

// A job of forked ranks over `folder`.
class Job {
 public:
  Job(int size, double silence_seconds, const std::string& folder, int64_t until,
      const Fault& fault)
      : mesh_(size),
        processes_(size, silence_seconds, [&](const World& world, const ControlOptions& control) {
          return BeRank(world, control, folder, until, fault);
        }) {}

  RankProcesses& processes() { return processes_; }
  // Of all ranks but `victim`, which is waited for before, where it ends by itself.
  std::vector<ProcessOutcome> WaitForOthers(int victim) {
    std::vector<ProcessOutcome> outcomes;
    for (int rank = 0; rank < processes_.size(); ++rank) {
      if (rank != victim) outcomes.push_back(processes_.Wait(rank));
    }
    return outcomes;
  }

 private:
  absl::StatusOr<std::string> BeRank(const World& world, const ControlOptions& control,
                                     const std::string& folder, int64_t until,
                                     const Fault& fault) const {
    const std::unique_ptr<kernels::Device> device = CpuDevice(1);
    const auto joined = Ranks::Join(world, control);
    if (!joined.ok()) return joined.status();
    Ranks& ranks = **joined;
    absl::Status status =
        ranks.OpenComm(device.get(), [&]() -> absl::StatusOr<std::unique_ptr<HostLink>> {
          return mesh_.Open(&ranks.control());
        });
    if (status.ok()) status = Training(&ranks, folder).Run(until, fault);
    if (status.ok()) status = ranks.control().AllGather("the end", "").status();
    if (!status.ok()) ranks.control().Abort(status);
    ranks.CloseComm();
    if (!status.ok()) return status;
    return "";
  }

  const tests::SocketMesh mesh_;
  RankProcesses processes_;
};

void ExpectWhole(const std::string& folder) {
  const auto names = Env::Default()->List(folder);
  ASSERT_TRUE(names.ok()) << names.status();
  for (const std::string& name : *names) {
    if (!CheckpointStep(name)) continue;
    const absl::Status whole = VerifyFolder(Env::Default(), JoinPath(folder, name)).status();
    EXPECT_TRUE(whole.ok()) << whole;
  }
}

int64_t StepsIn(const std::string& folder) {
  const auto newest = FindNewestValid(Env::Default(), folder);
  EXPECT_TRUE(newest.ok()) << newest.status();
  return newest->path ? newest->manifest.step() : 0;
}

class LostRank : public testing::TestWithParam<int> {};

// Killed again and again, each rank at so many steps by each signal.
TEST_P(LostRank, ThatDiesEndsAllAndTheyGoOnToTheSameBytes) {
  const int size = GetParam();
  const int steps = tests::Times(10, 100);
  std::mt19937_64 random(tests::FaultSeed());
  const tests::TempFolder folder;
  for (int i = 0; i < 2 * size * steps; ++i) {
    const Fault fault{.victim = i % size,
                      .signal = i / size % 2 == 0 ? SIGKILL : SIGSEGV,
                      .steps = int64_t(random() % 2)};
    SCOPED_TRACE(absl::StrCat("death ", i, " of rank ", fault.victim, " by ", fault.signal));
    Job job(size, 60, folder.path(), INT64_MAX, fault);
    ASSERT_EQ(job.processes().Wait(fault.victim).signal, fault.signal);
    const double died = Now();
    for (const ProcessOutcome& other : job.WaitForOthers(fault.victim)) {
      ASSERT_EQ(other.exit_code, proto::kExitPeerLost) << other.text;
      EXPECT_THAT(other.text, HasSubstr(absl::StrCat("rank ", fault.victim, " ")));
    }
    EXPECT_LT(Now() - died, kSecondsToEnd);
  }
  ExpectWhole(folder.path());
  const int64_t reached = StepsIn(folder.path());
  EXPECT_GT(reached, steps / 2);

  const tests::TempFolder undisturbed;
  ASSERT_TRUE(Training(nullptr, undisturbed.path()).Run(reached, {}).ok());
  for (const char* file : {kAdapterModelFile, "optimizer.safetensors", "run_state.pb"}) {
    const std::string name = absl::StrCat(CheckpointName(reached), "/", file);
    EXPECT_TRUE(*Env::Default()->ReadFile(folder.File(name), 1 << 26) ==
                *Env::Default()->ReadFile(undisturbed.File(name), 1 << 26))
        << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Of, LostRank, testing::Values(2, 4), testing::PrintToStringParamName());

// Jobs beside each other: what they take is waiting.
TEST(StoppedRank, IsNamedByAllInTime) {
  constexpr double kSilence = 2;
  const int jobs = tests::Times(10, 50);
  std::mt19937_64 random(tests::FaultSeed());
  struct Stopped {
    tests::TempFolder folder;
    Fault fault;
    std::unique_ptr<Job> job;
    double seconds = 0;
    std::vector<ProcessOutcome> others;
  };
  std::vector<Stopped> all(jobs);
  for (int i = 0; i < jobs; ++i) {
    const int size = i % 2 == 0 ? 2 : 4;
    all[i].fault = {.victim = i / 2 % size, .signal = SIGSTOP, .steps = int64_t(random() % 4)};
    all[i].job =
        std::make_unique<Job>(size, kSilence, all[i].folder.path(), INT64_MAX, all[i].fault);
  }
  std::vector<std::thread> watchers;
  for (Stopped& stopped : all) {
    watchers.emplace_back([&stopped] {
      int status = 0;
      ::waitpid(stopped.job->processes().pid(stopped.fault.victim), &status, WUNTRACED);
      ASSERT_TRUE(WIFSTOPPED(status));
      const double begin = Now();
      stopped.others = stopped.job->WaitForOthers(stopped.fault.victim);
      stopped.seconds = Now() - begin;
    });
  }
  for (std::thread& watcher : watchers) watcher.join();
  for (Stopped& stopped : all) {
    SCOPED_TRACE(absl::StrCat("rank ", stopped.fault.victim, " of ", stopped.others.size() + 1));
    EXPECT_LT(stopped.seconds, kSilence + (tests::kSanitized ? 20 : 2));
    for (const ProcessOutcome& other : stopped.others) {
      EXPECT_EQ(other.exit_code, proto::kExitPeerLost) << other.text;
      EXPECT_THAT(other.text,
                  HasSubstr(absl::StrCat("rank ", stopped.fault.victim, " was silent for ")));
      EXPECT_THAT(other.text, HasSubstr("s; last heard of: "));
    }
    ExpectWhole(stopped.folder.path());
  }
}

}  // namespace
}  // namespace qlora::engine
