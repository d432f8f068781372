// Whole training runs of the CUDA backend's ranks, as processes over the pretended NCCL: the bytes
// of one rank, also where ranks share out states and frozen weights; and what becomes of all where
// one fails while weights are gathered.

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/comm/now.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/exit_codes.h"
#include "tests/cuda/cuda_device.h"
#include "tests/engine/io/temp_folder.h"
#include "tests/engine/run/model_run.h"
#include "tests/support/process_ranks.h"

namespace qlora::engine {
namespace {

using testing::HasSubstr;
using tests::OnProcesses;
using tests::ProcessOutcome;

constexpr char kModel[] = "llama3_tied";
constexpr int64_t kMicroBatches = 4;  // of the global batch

struct Sharing {
  bool states = false, base = false;
};

// A run's model, loaded by one of `ranks` for all, over a device that its collectives know. Without
// them: alone.
class LoadedRun {
 public:
  LoadedRun(Ranks* ranks, const Sharing& sharing) : data_(GoldenDocuments("qlora_llama")) {
    const int size = ranks == nullptr ? 1 : ranks->size();
    RecordOptions record = TrainingOptions(kModel, data_, 1, kMicroBatches / size);
    record.storage.ranks = size;
    record.storage.rank = ranks == nullptr ? 0 : ranks->rank();
    record.storage.shard_states = sharing.states && size > 1;
    record.storage.shard_base = sharing.base && size > 1;
    record.least_part_bytes = 4 << 10;
    std::unique_ptr<kernels::Device> device = tests::CudaDevice();
    if (ranks != nullptr) {
      ranks->CloseComm();
      opened_ = ranks->OpenComm(device.get());
      if (!opened_.ok()) return;
    }
    run_.emplace(ModelRun::Options{.model = kModel, .record = record}, std::move(device), ranks);
  }

  const absl::Status& opened() const { return opened_; }
  ModelRun& run() { return *run_; }
  const Dataset& data() const { return data_; }

 private:
  const Dataset data_;
  absl::Status opened_;
  std::optional<ModelRun> run_;
};

// What two steps leave: losses and norms, then all of the state, or with shared states the adapter.
absl::StatusOr<std::string> TrainedBytes(Ranks* ranks, const Sharing& sharing) {
  LoadedRun loaded(ranks, sharing);
  if (!loaded.opened().ok()) return loaded.opened();
  ModelRun& run = loaded.run();
  if (ranks != nullptr && run.plan().run.train->gradient_parts.size() < 3) {
    return absl::FailedPreconditionError("too few parts");
  }
  if (run.storage().gathered.empty() == (sharing.base && ranks != nullptr)) {
    return absl::FailedPreconditionError("weights are not shared out as they should be");
  }
  std::string bytes;
  for (const StepResult& step : RunSteps(&run, loaded.data(), 1, kMicroBatches, 2, 0, ranks)) {
    absl::StrAppend(&bytes, step.loss_sum, " ", step.gradient_norm, "\n");
  }
  if (sharing.states) {
    const std::vector<uint8_t> adapter = run.Values<uint8_t>(run.storage().trained());
    bytes.append(adapter.begin(), adapter.end());
  } else {
    bytes += run.StateBytes();
  }
  if (ranks != nullptr) {
    if (absl::Status s = ranks->control().AllGather("the end", "").status(); !s.ok()) return s;
    ranks->CloseComm();
  }
  return bytes;
}

void ExpectTheBytesOfOneRank(const std::vector<int>& sizes, const Sharing& sharing) {
  const std::string expected = *TrainedBytes(nullptr, sharing);
  for (const int size : sizes) {
    const std::vector<ProcessOutcome> outcomes = OnProcesses(
        size, {}, [&](Ranks& ranks, kernels::Device*) { return TrainedBytes(&ranks, sharing); });
    for (int rank = 0; rank < size; ++rank) {
      ASSERT_EQ(outcomes[rank].exit_code, 0) << "rank " << rank << ": " << outcomes[rank].text;
      EXPECT_TRUE(outcomes[rank].text == expected) << "rank " << rank << " of " << size;
    }
  }
}

TEST(NcclTraining, OneTwoAndFourRanksTrainTheSameBytes) { ExpectTheBytesOfOneRank({2, 4}, {}); }

TEST(NcclTraining, RanksThatShareOutTheBaseTrainTheSameBytes) {
  ExpectTheBytesOfOneRank({2, 4}, {.base = true});
}

TEST(NcclTraining, RanksThatShareOutBaseAndStatesTrainTheSameBytes) {
  ExpectTheBytesOfOneRank({2}, {.states = true, .base = true});
}

// Trains without end.
absl::StatusOr<std::string> TrainForEver(Ranks& ranks) {
  LoadedRun loaded(&ranks, {.base = true});
  if (!loaded.opened().ok()) return loaded.opened();
  const int64_t mine = kMicroBatches / ranks.size();
  const Batcher batcher(&loaded.data(),
                        {.rows_per_micro_batch = 1, .micro_batches_per_step = kMicroBatches});
  const std::vector<MicroBatch> batch = batcher.Step(0);
  TrainStep step(&loaded.run().execution(), {.micro_batches = mine}, &ranks.comm());
  absl::StatusOr<StepResult> result;
  do {
    result =
        step.Run({.learning_rate = 1e-3, .trained_tokens = Batcher::TrainedTokens(batch)},
                 [&](int64_t j) -> absl::StatusOr<MicroBatchInputs> { return batch[j].inputs(); });
  } while (result.ok());
  // As the program does, before the memory goes that NCCL may still reach.
  ranks.control().Abort(result.status());
  ranks.CloseComm();
  return result.status();
}

struct Fault {
  const char* kind;        // of FAKE_NCCL_FAULT
  const char* words;       // of every rank's message
  bool is_silent = false;  // found by the deadline
};

class NcclGatherFaults : public testing::TestWithParam<Fault> {
 protected:
  static constexpr int kSize = 2;

  // Loads once, to know what that takes.
  static void SetUpTestSuite() {
    const double begin = Now();
    const std::vector<ProcessOutcome> loading =
        OnProcesses(kSize, {}, [](Ranks& ranks, kernels::Device*) -> absl::StatusOr<std::string> {
          LoadedRun loaded(&ranks, {.base = true});
          if (!loaded.opened().ok()) return loaded.opened();
          const std::string started = absl::StrCat(ranks.comm().started());
          const absl::Status met = ranks.control().AllGather("all have loaded", "").status();
          ranks.CloseComm();
          if (!met.ok()) return met;
          return started;
        });
    loading_seconds_ = Now() - begin;
    ASSERT_TRUE(absl::SimpleAtoi(loading[1].text, &loading_collectives_)) << loading[1].text;
    ASSERT_GT(loading_collectives_, 10);
  }

  static inline double loading_seconds_ = 0;
  static inline int64_t loading_collectives_ = 0;  // each is one group of calls
};

// Rank 1 fails in the third gather of the first micro-batch.
TEST_P(NcclGatherFaults, EndAllRanksWithTheirReason) {
  constexpr double kSilence = 1;
  const Fault& fault = GetParam();
  const tests::TempFolder folder;
  const double begin = Now();
  const std::vector<ProcessOutcome> outcomes =
      OnProcesses(kSize,
                  {.silence_seconds = fault.is_silent ? kSilence : 60,
                   .fault = absl::StrCat(fault.kind, " 1 ", loading_collectives_ + 2),
                   .abort_log = folder.File("log")},
                  [](Ranks& ranks, kernels::Device*) { return TrainForEver(ranks); });
  // Loading may take longer this time; behind the deadline there are two seconds to end.
  EXPECT_LT(Now() - begin, 2 * loading_seconds_ + (fault.is_silent ? kSilence : 0) + 2 + 2);
  for (int rank = 0; rank < kSize; ++rank) {
    EXPECT_EQ(outcomes[rank].exit_code, proto::kExitPeerLost) << rank << outcomes[rank].text;
    EXPECT_THAT(outcomes[rank].text, HasSubstr(fault.words)) << rank;
  }
  // Of each rank two communicators: the one that it came with, and the one of its own device.
  const auto log = Env::Default()->ReadFile(folder.File("log"), 1 << 10);
  ASSERT_TRUE(log.ok()) << log.status();
  EXPECT_EQ(std::count(log->begin(), log->end(), '\n'), 2 * kSize) << *log;
}

INSTANTIATE_TEST_SUITE_P(Kinds, NcclGatherFaults,
                         testing::Values(Fault{"hang", "rank 1 does not get past collective", true},
                                         Fault{"stall", "all ranks have been in collective", true},
                                         Fault{"fail", "socket closed by the other side"}),
                         [](const auto& info) { return std::string(info.param.kind); });

}  // namespace
}  // namespace qlora::engine
