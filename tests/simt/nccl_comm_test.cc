// The CUDA backend's ranks, as processes over the pretended NCCL.

#include "engine/comm/nccl_comm.h"

#include <signal.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/setup/open_device.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_device.h"
#include "proto/exit_codes.h"
#include "tests/engine/io/temp_folder.h"
#include "tests/support/process_ranks.h"
#include "tests/support/simt/runtime.h"

namespace qlora::engine {
namespace {

using kernels::DType;
using testing::Each;
using testing::HasSubstr;
using tests::OnProcesses;
using tests::ProcessOptions;
using tests::ProcessOutcome;

// Terms whose sum shows in what order they were added.
template <class T>
std::vector<T> Terms(int rank, int64_t count) {
  std::vector<T> terms(count);
  for (int64_t i = 0; i < count; ++i) {
    terms[i] =
        T(std::sin(double(rank + 1) * 12.9898 + double(i) * 78.233) * std::exp2(double(i % 40)));
  }
  return terms;
}

// ((0 + 1) + (2 + 3)) + ..., pairs level by level.
template <class T>
std::vector<T> Pairwise(int size, int64_t count) {
  std::vector<std::vector<T>> terms;
  for (int rank = 0; rank < size; ++rank) terms.push_back(Terms<T>(rank, count));
  while (terms.size() > 1) {
    std::vector<std::vector<T>> sums;
    for (size_t r = 0; r < terms.size(); r += 2) {
      sums.push_back(terms[r]);
      for (int64_t i = 0; r + 1 < terms.size() && i < count; ++i) {
        sums.back()[i] += terms[r + 1][i];
      }
    }
    terms = sums;
  }
  return terms[0];
}

// Device memory with a copy of `values` behind zeros, and the op that adds the copy to them.
template <class T>
struct OnDevice {
  OnDevice(kernels::Device* device, const std::vector<T>& values)
      : bytes(int64_t(values.size() * sizeof(T))), buffer(*device->Allocate(2 * bytes)) {
    EXPECT_TRUE(device->CopyIn(Copy(), values.data(), bytes).ok());
  }
  uint8_t* data() const { return static_cast<uint8_t*>(buffer.data()); }
  uint8_t* Copy() const { return data() + bytes; }
  kernels::Op AddCopy(DType dtype) const {
    const int64_t count = bytes / int64_t(sizeof(T));
    return kernels::AddGradient{.from = kernels::Tensor{Copy(), dtype, 1, count, count},
                                .into = {data(), dtype, 1, count, count}};
  }
  const int64_t bytes;
  const kernels::Buffer buffer;
};

// Sums what the device has yet to compute; the device goes on with the sum as soon as it is there.
template <class T>
absl::Status ExpectSum(Ranks& ranks, kernels::Device* device, DType dtype, int64_t count) {
  const std::vector<T> mine = Terms<T>(ranks.rank(), count);
  const OnDevice<T> terms(device, mine), result(device, mine);
  const OnDevice<T> scratch(device,
                            std::vector<T>(Comm::ScratchCount(count, ranks.size()) + 1, T(-1)));
  auto before = device->Prepare({terms.AddCopy(dtype)});
  const kernels::Tensor sum{terms.data(), dtype, 1, count, count};
  auto after = device->Prepare(
      {kernels::AddGradient{.from = sum, .into = {result.data(), dtype, 1, count, count}}});
  if (absl::Status s = (*before)->Run(); !s.ok()) return s;
  if (absl::Status s = ranks.comm().StartSum(dtype, terms.data(), scratch.data(), count); !s.ok()) {
    return s;
  }
  if (absl::Status s = ranks.comm().Finish(); !s.ok()) return s;
  if (absl::Status s = (*after)->Run(); !s.ok()) return s;
  if (absl::Status s = device->Synchronize(); !s.ok()) return s;
  std::vector<T> found(count);
  if (absl::Status s = device->CopyOut(found.data(), result.data(), result.bytes); !s.ok()) {
    return s;
  }
  const std::vector<T> expected = Pairwise<T>(ranks.size(), count);
  for (int64_t i = 0; i < count; ++i) {
    if (std::memcmp(&found[i], &expected[i], sizeof(T)) == 0) continue;
    return absl::DataLossError(absl::StrCat("of ", count, " elements the sum of ", i, " is ",
                                            found[i], ", not ", expected[i]));
  }
  return absl::OkStatus();
}

void ExpectDone(const std::vector<ProcessOutcome>& outcomes) {
  for (size_t rank = 0; rank < outcomes.size(); ++rank) {
    EXPECT_EQ(outcomes[rank].exit_code, 0) << "rank " << rank << ": " << outcomes[rank].text;
  }
}

TEST(NcclComm, SumsByABalancedTree) {
  for (const int size : {2, 3, 4}) {
    ExpectDone(OnProcesses(
        size, {}, [](Ranks& ranks, kernels::Device* device) -> absl::StatusOr<std::string> {
          // The last is more than one chunk of a channel.
          for (const int64_t count : {1, 2, 7, 4097, 70'001}) {
            if (absl::Status s = ExpectSum<float>(ranks, device, DType::kF32, count); !s.ok()) {
              return s;
            }
          }
          if (absl::Status s = ExpectSum<double>(ranks, device, DType::kF64, 1); !s.ok()) return s;
          return "";
        }));
  }
}

// Shares of any size, none among them: the same sums, each at its rank alone.
TEST(NcclComm, SumsSharesToTheirRanks) {
  for (const Shares& shares : {Shares{0, 3, 10}, {0, 0, 1030, 5000}, {0, 7, 8, 8, 9}}) {
    const int size = int(shares.size()) - 1;
    ExpectDone(OnProcesses(
        size, {}, [&](Ranks& ranks, kernels::Device* device) -> absl::StatusOr<std::string> {
          const int64_t begin = shares[ranks.rank()], end = shares[ranks.rank() + 1];
          const OnDevice<float> data(device, Terms<float>(ranks.rank(), shares.back()));
          const OnDevice<float> scratch(device, std::vector<float>((size - 1) * (end - begin) + 1));
          if (absl::Status s =
                  ranks.comm().StartSumShares(DType::kF32, data.Copy(), scratch.data(), shares);
              !s.ok()) {
            return s;
          }
          if (absl::Status s = ranks.comm().Finish(); !s.ok()) return s;
          std::vector<float> found(shares.back()), expected = Terms<float>(ranks.rank(), end);
          expected.resize(begin);
          const std::vector<float> sums = Pairwise<float>(size, shares.back()),
                                   own = Terms<float>(ranks.rank(), shares.back());
          expected.insert(expected.end(), sums.begin() + begin, sums.begin() + end);
          expected.insert(expected.end(), own.begin() + end, own.end());
          if (absl::Status s = device->CopyOut(found.data(), data.Copy(), data.bytes); !s.ok()) {
            return s;
          }
          if (found != expected) return absl::DataLossError("other sums");
          return "";
        }));
  }
}

TEST(NcclComm, GathersSharesFromWhereverTheyLie) {
  const Shares shares = {0, 0, 1030, 100'003};
  ExpectDone(
      OnProcesses(3, {}, [&](Ranks& ranks, kernels::Device* device) -> absl::StatusOr<std::string> {
        std::vector<uint8_t> expected(shares.back(), 3);
        std::fill_n(expected.begin(), shares[2], 2);
        for (const bool in_place : {false, true}) {
          const OnDevice<uint8_t> mine(device,
                                       std::vector<uint8_t>(shares.back(), ranks.rank() + 1));
          uint8_t* const all = in_place ? mine.Copy() : mine.data();
          const uint8_t* const from =
              in_place ? all + shares[ranks.rank()] : static_cast<const uint8_t*>(mine.Copy());
          if (absl::Status s = ranks.comm().StartAllGather(from, all, shares); !s.ok()) return s;
          if (absl::Status s = ranks.comm().Finish(); !s.ok()) return s;
          std::vector<uint8_t> found(shares.back());
          if (absl::Status s = device->CopyOut(found.data(), all, mine.bytes); !s.ok()) return s;
          if (found != expected) return absl::DataLossError(in_place ? "in place" : "elsewhere");
        }
        return "";
      }));
}

// While others sum, and wait for what they have started first.
TEST(NcclComm, BroadcastsFromAnyRankToThoseNamed) {
  constexpr int kSize = 3;
  ExpectDone(OnProcesses(
      kSize, {}, [](Ranks& ranks, kernels::Device* device) -> absl::StatusOr<std::string> {
        const int rank = ranks.rank();
        for (const std::vector<int>& those : {std::vector<int>{0, 1, 2}, {2, 1}, {1, 0}, {2}}) {
          const bool takes_part = std::find(those.begin(), those.end(), rank) != those.end();
          const OnDevice<uint8_t> bytes(device, std::vector<uint8_t>(100'003, rank + 1));
          if (takes_part) {
            if (absl::Status s = ranks.comm().StartBroadcast(bytes.Copy(), bytes.bytes, those);
                !s.ok()) {
              return s;
            }
          }
          const int64_t number = ranks.comm().started();
          if (absl::Status s = ranks.comm().Await(number); !s.ok()) return s;
          std::vector<uint8_t> found(bytes.bytes);
          if (absl::Status s = device->CopyOut(found.data(), bytes.Copy(), bytes.bytes); !s.ok()) {
            return s;
          }
          const int expected = takes_part ? those[0] : rank;
          if (found != std::vector<uint8_t>(bytes.bytes, expected + 1)) {
            return absl::DataLossError(absl::StrCat("not the bytes of rank ", expected));
          }
          if (absl::Status s = ExpectSum<float>(ranks, device, DType::kF32, 10); !s.ok()) return s;
        }
        return "";
      }));
}

// Its peer starts the second one only when the wait for the first is over.
TEST(NcclComm, WaitsForTheFirstAndNotForTheLast) {
  ExpectDone(
      OnProcesses(2, {}, [](Ranks& ranks, kernels::Device* device) -> absl::StatusOr<std::string> {
        const OnDevice<uint8_t> first(device, {1}), second(device, {1});
        const int both[] = {0, 1};
        const auto start = [&](const OnDevice<uint8_t>& byte) {
          return ranks.comm().StartBroadcast(byte.Copy(), 1, both);
        };
        if (absl::Status s = start(first); !s.ok()) return s;
        const int64_t number = ranks.comm().started();
        if (ranks.rank() == 0) {
          if (absl::Status s = start(second); !s.ok()) return s;
        }
        if (absl::Status s = ranks.comm().Await(number); !s.ok()) return s;
        if (absl::Status s = ranks.control().AllGather("go on", "").status(); !s.ok()) return s;
        if (ranks.rank() == 1) {
          if (absl::Status s = start(second); !s.ok()) return s;
        }
        if (absl::Status s = ranks.comm().Finish(); !s.ok()) return s;
        return "";
      }));
}

// Sums without end; rank `killed` is killed at its third.
absl::StatusOr<std::string> SumForEver(Ranks& ranks, kernels::Device* device, int killed = -1) {
  const OnDevice<float> data(device, Terms<float>(ranks.rank(), 1000));
  const OnDevice<float> scratch(device, std::vector<float>(Comm::ScratchCount(1000, ranks.size())));
  for (int i = 0;; ++i) {
    if (i == 3 && ranks.rank() == killed) raise(SIGKILL);
    if (absl::Status s = ranks.comm().StartSum(DType::kF32, data.Copy(), scratch.data(), 1000);
        !s.ok()) {
      return s;
    }
    if (absl::Status s = ranks.comm().Finish(); !s.ok()) return s;
  }
}

struct Fault {
  const char* name;
  const char* fault;  // as FAKE_NCCL_FAULT; empty: rank 1 is killed
  int exit_code;
  std::vector<const char*> words;  // of every rank's message
  int aborts;                      // ranks of four that have a communicator to abort
  bool is_silent = false;          // found by the deadline
};

class NcclFaults : public testing::TestWithParam<Fault> {};

TEST_P(NcclFaults, EndAllRanksWithTheirReason) {
  constexpr int kSize = 4;
  constexpr double kSilence = 1;
  const Fault& fault = GetParam();
  const tests::TempFolder folder;
  const bool kills = *fault.fault == '\0';
  const auto begin = std::chrono::steady_clock::now();
  const std::vector<ProcessOutcome> outcomes =
      OnProcesses(kSize,
                  {.silence_seconds = fault.is_silent ? kSilence : 60,
                   .fault = fault.fault,
                   .abort_log = folder.File("log")},
                  [&](Ranks& ranks, kernels::Device* device) {
                    return SumForEver(ranks, device, kills ? 1 : -1);
                  });
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  // Beside the deadline two seconds to end; and as much for four processes to start on a busy
  // machine.
  EXPECT_LT(seconds.count(), (fault.is_silent ? kSilence : 0) + 2 + 2);
  for (int rank = 0; rank < kSize; ++rank) {
    if (kills && rank == 1) continue;
    EXPECT_EQ(outcomes[rank].exit_code, fault.exit_code) << rank << ": " << outcomes[rank].text;
    for (const char* word : fault.words) EXPECT_THAT(outcomes[rank].text, HasSubstr(word)) << rank;
  }
  const auto log = Env::Default()->ReadFile(folder.File("log"), 1 << 10);
  const std::string aborted = log.ok() ? *log : "";
  EXPECT_EQ(std::count(aborted.begin(), aborted.end(), '\n'), fault.aborts) << aborted;
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, NcclFaults,
    testing::Values(
        Fault{"killed", "", proto::kExitPeerLost, {"rank 1", "is gone"}, 3},
        Fault{"hang",
              "hang 1 4",
              proto::kExitPeerLost,
              {"rank 1 does not get past collective", "(exchange among ranks)"},
              4,
              true},
        Fault{"stall",
              "stall 1 4",
              proto::kExitPeerLost,
              {"all ranks have been in collective", "(exchange among ranks)"},
              4,
              true},
        Fault{"fail",
              "fail 1 4",
              proto::kExitPeerLost,
              {"NCCL 2.28.9: remote process exited", "socket closed by the other side"},
              4},
        Fault{"miscount", "miscount 1 4", proto::kExitOurBug, {"rank 1 sends", "expects"}, 4},
        Fault{"init", "init 1", proto::kExitPeerLost, {"NCCL 2.28.9", "no socket interface"}, 3},
        Fault{"late_init", "lateinit 1", proto::kExitPeerLost, {"connection refused"}, 4},
        Fault{"old", "old", proto::kExitNoDevice, {"is NCCL 2.10.5", "2.18.0 or later"}, 0}),
    [](const auto& info) { return std::string(info.param.name); });

// A rank's GPU is the one with its number on the machine.
TEST(OpenJobDevice, WantsAGpuForEveryRankOfTheMachine) {
  proto::Job job;
  job.set_device(proto::DeviceKind::CUDA);
  std::vector<std::string> warnings;
  simt::SetCard({.count = 2});
  const auto first = OpenJobDevice(job, 0, 3, &warnings);
  const auto second = OpenJobDevice(job, 1, 3, &warnings);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ((*first)->info().name, (*second)->info().name) << "ranks are compared by it";
  const absl::Status third = OpenJobDevice(job, 2, 3, &warnings).status();
  EXPECT_EQ(proto::ExitCodeOf(third), proto::kExitNoDevice);
  EXPECT_THAT(std::string(third.message()), HasSubstr("no GPU 2; this machine has 2"));
  EXPECT_THAT(std::string(third.message()), HasSubstr("3 ranks run on this machine"));
  simt::SetCard({});
}

}  // namespace
}  // namespace qlora::engine
