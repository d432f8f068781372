// On CUDA too an adapter trained among others has the bytes that it has alone, where the kernels
// are the same ones.

#include "gtest/gtest.h"
#include "tests/cuda/cuda_device.h"
#include "tests/engine/run/together_run.h"

namespace qlora::engine {
namespace {

using tests::CudaDevice;

TEST(CudaTogether, HasTheBytesThatItHasAlone) {
  const std::vector<Customer> customers = Customers();
  const std::vector<size_t> members = {1, 0, 3};
  const std::vector<Left> together = TrainMembers({}, customers, members, CudaDevice());
  for (size_t m = 0; m < members.size(); ++m) {
    const Left alone = TrainMembers({}, customers, {members[m]}, CudaDevice()).front();
    EXPECT_FALSE(alone.skips.front());
    EXPECT_EQ(together[m].losses, alone.losses) << "customer " << members[m];
    EXPECT_TRUE(together[m] == alone) << "customer " << members[m];
  }
}

}  // namespace
}  // namespace qlora::engine
