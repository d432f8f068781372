// An adapter trained among others has the bytes that it has alone: no customer's rows, weights or
// numbers reach another's adapter.

#include "gtest/gtest.h"
#include "tests/engine/run/together_run.h"
#include "tests/support/deferred_device.h"

namespace qlora::engine {
namespace {

class Together : public testing::TestWithParam<TogetherCase> {
 protected:
  void ExpectEqualAlone(const std::vector<Left>& together, const std::vector<size_t>& members,
                        int64_t except = -1) {
    for (size_t m = 0; m < members.size(); ++m) {
      if (int64_t(m) == except) continue;
      const Left alone = TrainMembers(GetParam(), customers_, {members[m]}, CpuDevice(1)).front();
      EXPECT_FALSE(alone.skips.front());
      EXPECT_EQ(together[m].losses, alone.losses) << "customer " << members[m];
      EXPECT_EQ(together[m].norms, alone.norms) << "customer " << members[m];
      EXPECT_TRUE(together[m] == alone) << "customer " << members[m];
    }
  }
  const std::vector<Customer> customers_ = Customers();
};

TEST_P(Together, HasTheBytesThatItHasAlone) {
  const std::vector<size_t> members = {0, 1, 2, 3};
  ExpectEqualAlone(TrainMembers(GetParam(), customers_, members, CpuDevice(2)), members);
}

TEST_P(Together, InAnyOrderOnADeferredDevice) {
  const std::vector<size_t> members = {3, 1, 0};
  auto device = std::make_unique<kernels::optest::DeferredDevice>(
      CpuDevice(1), kernels::optest::DeferredOptions{.seed = 5});
  ExpectEqualAlone(TrainMembers(GetParam(), customers_, members, std::move(device)), members);
}

// Each in turn in front of, between and behind the others.
TEST_P(Together, OnesNaNStaysItsOwn) {
  const std::vector<size_t> members = {0, 1, 2};
  for (int64_t poisoned = 0; poisoned < 3; ++poisoned) {
    const std::vector<Left> left =
        TrainMembers(GetParam(), customers_, members, CpuDevice(1), poisoned);
    EXPECT_TRUE(left[poisoned].skips.front());
    ExpectEqualAlone(left, members, poisoned);
  }
}

std::vector<TogetherCase> Cases() {
  using enum kernels::DType;
  return {{.name = "qlora"},
          {.name = "in_groups", .groups = 2},
          {.name = "lora_f32", .mode = proto::Mode::LORA, .compute = kF32},
          {.name = "eight_bit_paged",
           .eight_bit_states = true,
           .paging = {.allowed = true,
                      .budget_bytes = 64 << 10,
                      .window_bytes = 16 << 10,
                      .folder = testing::TempDir()},
           .groups = 3}};
}

INSTANTIATE_TEST_SUITE_P(Runs, Together, testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace qlora::engine
