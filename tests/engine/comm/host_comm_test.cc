#include "engine/comm/host_comm.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"
#include "proto/errors.h"
#include "proto/exit_codes.h"
#include "tests/engine/run/model_run.h"
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

TEST(HostComm, BroadcastsFromAnyRank) {
  for (const int size : {2, 3, 4}) {
    OnRanks(
        size, {}, [](int) { return CpuDevice(); },
        [&](Ranks& ranks, kernels::Device*) {
          for (int root = 0; root < size; ++root) {
            std::vector<uint8_t> bytes((9 << 20) + 5, uint8_t(ranks.rank()));
            ASSERT_TRUE(
                ranks.comm().StartBroadcast(bytes.data(), int64_t(bytes.size()), root).ok());
            ASSERT_TRUE(ranks.comm().Finish().ok());
            EXPECT_EQ(bytes, std::vector<uint8_t>(bytes.size(), uint8_t(root)));
          }
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

}  // namespace
}  // namespace qlora::engine
