// What this machine does per second is measured in a fraction of a second, also where it is slow.

#include "engine/plan/rates.h"

#include <memory>
#include <vector>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_device.h"
#include "tests/support/forwarding_device.h"

namespace qlora::engine {
namespace {

// Each piece takes as long as is said, and does nothing.
class SlowDevice : public kernels::optest::ForwardingDevice {
 public:
  explicit SlowDevice(absl::Duration takes)
      : ForwardingDevice(*kernels::cpu::CreateCpuDevice({.threads = 1})), takes_(takes) {}

  absl::StatusOr<std::unique_ptr<kernels::Piece>> Prepare(std::vector<kernels::Op>) override {
    return std::make_unique<Waiting>(*this);
  }
  int runs() const { return runs_; }

 private:
  struct Waiting : kernels::Piece {
    explicit Waiting(SlowDevice& device) : device(device) {}
    absl::Status Run() override {
      ++device.runs_;
      absl::SleepFor(device.takes_);
      return absl::OkStatus();
    }
    SlowDevice& device;
  };

  const absl::Duration takes_;
  int runs_ = 0;
};

// Vectors are zeroed once, by a piece of its own.
TEST(MachineRates, AQuickDeviceIsAskedFiveTimesForEach) {
  SlowDevice device(absl::Milliseconds(1));
  ASSERT_TRUE(MeasureRates(device, kernels::DType::kBf16).ok());
  EXPECT_EQ(device.runs(), 5 + 1 + 5);
}

TEST(MachineRates, ASlowOneOnceForEach) {
  SlowDevice device(absl::Milliseconds(210));
  const absl::StatusOr<MachineRates> rates = MeasureRates(device, kernels::DType::kBf16);
  ASSERT_TRUE(rates.ok()) << rates.status();
  EXPECT_EQ(device.runs(), 1 + 1 + 1);
  // 512 × 1024 × 1024 multiplications and additions in 0.21 s, or a little more.
  EXPECT_LE(rates->matmul_flops, 2.0 * 512 * 1024 * 1024 / 0.21);
  EXPECT_GT(rates->matmul_flops, 2.0 * 512 * 1024 * 1024 / 2.1);
}

}  // namespace
}  // namespace qlora::engine
