// Memory that the plan counted on and the system refuses, at every allocation of a run.
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_device.h"
#include "tests/engine/run/model_run.h"
#include "tests/support/forwarding_device.h"

namespace qlora::engine {
namespace {

// Refuses allocation number `fail_at`, from 0.
class ScarceDevice : public kernels::optest::ForwardingDevice {
 public:
  using ForwardingDevice::ForwardingDevice;
  absl::StatusOr<kernels::Buffer> Allocate(int64_t bytes) override {
    if (Refuses()) return absl::ResourceExhaustedError("no memory, by order");
    return ForwardingDevice::Allocate(bytes);
  }
  absl::StatusOr<std::unique_ptr<kernels::PagedMemory>> AllocatePaged(
      const kernels::PagedShape& shape) override {
    if (Refuses()) return absl::ResourceExhaustedError("no memory, by order");
    return ForwardingDevice::AllocatePaged(shape);
  }
  int64_t allocations = 0, fail_at = -1;

 private:
  bool Refuses() { return allocations++ == fail_at; }
};

TEST(Allocation, OneThatFailsIsNamedAndTheNextRunIsWhole) {
  constexpr char kModel[] = "llama3_tied";
  const Dataset data = GoldenDocuments(kModel);
  ModelRun::Options options{.model = kModel, .record = TrainingOptions(kModel, data, 1, 1)};
  options.paging = {.allowed = true,
                    .budget_bytes = 2 * 4096,
                    .window_bytes = 4096,
                    .folder = testing::TempDir()};
  ModelRun run(options, CpuDevice(1));
  ScarceDevice device(CpuDevice(1));
  ASSERT_TRUE(Execution::Create(run.plan(), &device).ok());
  const int64_t count = device.allocations;
  ASSERT_GE(count, 4);
  for (int64_t k = 0; k < count; ++k) {
    device.allocations = 0;
    device.fail_at = k;
    const auto execution = Execution::Create(run.plan(), &device);
    ASSERT_FALSE(execution.ok()) << k;
    EXPECT_EQ(execution.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(execution.status().message()), testing::HasSubstr("allocating "));
  }
  device.fail_at = -1;
  EXPECT_TRUE(Execution::Create(run.plan(), &device).ok());
}

}  // namespace
}  // namespace qlora::engine
