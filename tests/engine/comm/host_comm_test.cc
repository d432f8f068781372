#include "engine/comm/host_comm.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"
#include "proto/errors.h"
#include "proto/exit_codes.h"
#include "tests/engine/run/model_run.h"
#include "tests/support/no_threads.h"
#include "tests/support/thread_ranks.h"

namespace qlora::engine {
namespace {

using kernels::DType;
using tests::OnRanks;

// Terms whose sum shows in what order they were added.
template <class T>
T Term(int rank, int64_t i) {
  return T(std::sin(double(rank + 1) * 12.9898 + double(i) * 78.233) * std::exp2(double(i % 40)));
}

// ((0 + 1) + (2 + 3)) + ..., written another way than the code under test: pairs, level by level.
template <class T>
T Pairwise(std::vector<T> terms) {
  while (terms.size() > 1) {
    std::vector<T> sums;
    for (size_t i = 0; i < terms.size(); i += 2) {
      sums.push_back(i + 1 < terms.size() ? terms[i] + terms[i + 1] : terms[i]);
    }
    terms = sums;
  }
  return terms[0];
}

template <class T>
void ExpectSums(DType dtype, int size, int64_t count) {
  OnRanks(
      size, {}, [](int) { return CpuDevice(); },
      [&](Ranks& ranks, kernels::Device*) {
        std::vector<T> data(count), scratch(Comm::ScratchCount(count, size) + 1, T(-1));
        for (int64_t i = 0; i < count; ++i) data[i] = Term<T>(ranks.rank(), i);
        ASSERT_TRUE(ranks.comm().StartSum(dtype, data.data(), scratch.data(), count).ok());
        ASSERT_TRUE(ranks.comm().Finish().ok());
        EXPECT_EQ(scratch.back(), T(-1)) << "scratch behind its count";
        for (int64_t i = 0; i < count; ++i) {
          std::vector<T> terms;
          for (int r = 0; r < size; ++r) terms.push_back(Term<T>(r, i));
          ASSERT_EQ(data[i], Pairwise(terms)) << size << " ranks, " << count << " values, at " << i;
        }
      });
}

TEST(HostComm, SumsByABalancedTree) {
  for (const int size : {2, 3, 4, 5, 8}) {
    for (const int64_t count : {1, 2, 7, 4097}) ExpectSums<float>(DType::kF32, size, count);
    ExpectSums<double>(DType::kF64, size, 1);
  }
}

// More than one message to each rank.
TEST(HostComm, SumsOfManyMegabytes) { ExpectSums<float>(DType::kF32, 2, (5 << 20) + 3); }

// Shares of any size: the same sums as above, each at its rank alone.
TEST(HostComm, SumsSharesToTheirRanks) {
  for (const Shares& shares : {Shares{0, 3, 10}, {0, 0, 1030, 5000}, {0, 7, 8, 8, 9}}) {
    const int size = int(shares.size()) - 1;
    OnRanks(
        size, {}, [](int) { return CpuDevice(); },
        [&](Ranks& ranks, kernels::Device*) {
          const int rank = ranks.rank();
          const int64_t begin = shares[rank], end = shares[rank + 1];
          std::vector<float> data(shares.back()), scratch((size - 1) * (end - begin) + 1, -1.0f);
          for (int64_t i = 0; i < shares.back(); ++i) data[i] = Term<float>(rank, i);
          ASSERT_TRUE(
              ranks.comm().StartSumShares(DType::kF32, data.data(), scratch.data(), shares).ok());
          ASSERT_TRUE(ranks.comm().Finish().ok());
          EXPECT_EQ(scratch.back(), -1.0f) << "scratch behind its count";
          for (int64_t i = 0; i < shares.back(); ++i) {
            std::vector<float> terms;
            for (int r = 0; r < size; ++r) terms.push_back(Term<float>(r, i));
            const bool is_mine = i >= begin && i < end;
            ASSERT_EQ(data[i], is_mine ? Pairwise(terms) : Term<float>(rank, i))
                << rank << " " << i;
          }
        });
  }
}

TEST(HostComm, GathersSharesFromWhereverTheyLie) {
  for (const bool in_place : {false, true}) {
    for (const Shares& shares : {Shares{0, 3, 10}, {0, 0, 1030, 5000}, {0, 5 << 20, 9 << 20}}) {
      OnRanks(
          int(shares.size()) - 1, {}, [](int) { return CpuDevice(); },
          [&](Ranks& ranks, kernels::Device*) {
            const int64_t begin = shares[ranks.rank()], end = shares[ranks.rank() + 1];
            const auto byte = [](int64_t i) { return uint8_t(i * 7 + i / 251); };
            std::vector<uint8_t> all(shares.back()), mine;
            for (int64_t i = begin; i < end; ++i) mine.push_back(byte(i));
            if (in_place) std::copy(mine.begin(), mine.end(), all.begin() + begin);
            const uint8_t* const from = in_place ? all.data() + begin : mine.data();
            ASSERT_TRUE(ranks.comm().StartAllGather(from, all.data(), shares).ok());
            ASSERT_TRUE(ranks.comm().Finish().ok());
            for (int64_t i = 0; i < shares.back(); ++i) ASSERT_EQ(all[i], byte(i)) << i;
          });
    }
  }
}

TEST(HostComm, WaitsForTheFirstAndNotForTheLast) {
  OnRanks(
      2, {}, [](int) { return CpuDevice(); },
      [](Ranks& ranks, kernels::Device*) {
        uint8_t first = uint8_t(ranks.rank()), second = first;
        const int both[] = {0, 1};
        ASSERT_TRUE(ranks.comm().StartBroadcast(&first, 1, both).ok());
        const int64_t number = ranks.comm().started();
        if (ranks.rank() == 0) {
          // Its peer starts the second one only when this wait is over.
          ASSERT_TRUE(ranks.comm().StartBroadcast(&second, 1, both).ok());
          ASSERT_TRUE(ranks.comm().Await(number).ok());
          ASSERT_TRUE(ranks.control().AllGather("go on", "").ok());
        } else {
          ASSERT_TRUE(ranks.comm().Await(number).ok());
          ASSERT_TRUE(ranks.control().AllGather("go on", "").ok());
          ASSERT_TRUE(ranks.comm().StartBroadcast(&second, 1, both).ok());
        }
        ASSERT_TRUE(ranks.comm().Finish().ok());
        EXPECT_EQ(first, 0);
        EXPECT_EQ(second, 0);
      });
}

TEST(HostComm, BroadcastsFromAnyRankToThoseNamed) {
  for (const std::vector<int>& those : {std::vector<int>{0, 1}, {2, 0, 1}, {3, 1}, {2}}) {
    OnRanks(
        4, {}, [](int) { return CpuDevice(); },
        [&](Ranks& ranks, kernels::Device*) {
          const bool takes_part =
              std::find(those.begin(), those.end(), ranks.rank()) != those.end();
          std::vector<uint8_t> bytes((9 << 20) + 5, uint8_t(ranks.rank()));
          if (takes_part) {
            ASSERT_TRUE(
                ranks.comm().StartBroadcast(bytes.data(), int64_t(bytes.size()), those).ok());
          }
          ASSERT_TRUE(ranks.comm().Finish().ok());
          const int expected = takes_part ? those[0] : ranks.rank();
          EXPECT_EQ(bytes, std::vector<uint8_t>(bytes.size(), uint8_t(expected)));
          ASSERT_TRUE(ranks.control().AllGather("all are done", "").ok());
        });
  }
}

TEST(HostComm, AnAbortEndsASumThatWaits) {
  OnRanks(
      3, {}, [](int) { return CpuDevice(); },
      [](Ranks& ranks, kernels::Device*) {
        if (ranks.rank() == 1) {
          ranks.control().Abort(proto::NumbersBadError("not this time"));
          return;
        }
        std::vector<float> data(10), scratch(20);
        ASSERT_TRUE(ranks.comm().StartSum(DType::kF32, data.data(), scratch.data(), 10).ok());
        EXPECT_EQ(proto::ExitCodeOf(ranks.comm().Finish()), proto::kExitNumbersBad);
      });
}

TEST(HostComm, WithoutAThreadIsRefused) {
  OnRanks(2, {}, nullptr, [](Ranks& ranks, kernels::Device*) {
    if (ranks.is_first()) {
      const std::unique_ptr<kernels::Device> device = CpuDevice();
      const tests::NoThreads no_threads;
      const auto comm = CreateHostComm(&ranks.control(), device.get(), nullptr);
      EXPECT_EQ(proto::ExitCodeOf(comm.status()), proto::kExitDoesNotFit) << comm.status();
    }
    ASSERT_TRUE(ranks.control().AllGather("all are done", "").ok());
  });
}

}  // namespace
}  // namespace qlora::engine
