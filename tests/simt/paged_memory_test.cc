// Paged memory of the CUDA backend over the executor's runtime, whose streams overtake each other
// wherever events allow it.

#include "kernels/paged_memory.h"

#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "engine/optim/state_pager.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/support/simt/runtime.h"

namespace qlora::kernels {
namespace {

constexpr int64_t kWindowBytes = 4096, kFloats = kWindowBytes / 4, kWindows = 7;

struct Case {
  bool managed;
  int64_t resident, slots;
};

class CudaPagedMemory : public testing::TestWithParam<Case> {
 protected:
  // Each sweep adds window w + 1 to every element of window w; the expected sums are exact.
  void Sweeps(uint64_t seed) {
    const Case& c = GetParam();
    simt::SetCard({.concurrent_managed = c.managed, .remote_access = c.slots == 0, .seed = seed});
    auto device = *cuda::CreateCudaDevice({});
    const PagedShape shape{.window_bytes = kWindowBytes,
                           .windows = kWindows,
                           .resident = c.resident,
                           .slots = c.slots};
    auto memory = device->AllocatePaged(shape);
    ASSERT_TRUE(memory.ok()) << memory.status();
    auto addend = device->Allocate(kWindows * kWindowBytes);
    ASSERT_TRUE(addend.ok());
    std::vector<std::unique_ptr<Piece>> pieces;
    for (int64_t w = 0; w < kWindows; ++w) {
      uint8_t* at = static_cast<uint8_t*>(addend->data()) + w * kWindowBytes;
      const std::vector<float> values(kFloats, float(w + 1));
      ASSERT_TRUE(device->CopyIn(at, values.data(), kWindowBytes).ok());
      pieces.push_back(*device->Prepare(
          {AddGradient{.from = {at, DType::kF32, 1, kFloats, kFloats},
                       .into = {(*memory)->Address(w), DType::kF32, 1, kFloats, kFloats}}}));
    }
    // What the host wrote before the first sweep counts, and what it writes between two.
    const auto expect = [&](float sweeps) {
      for (int64_t w = 0; w < kWindows; ++w) {
        std::vector<float> values(kFloats);
        ASSERT_TRUE((*memory)->Read(w, 0, values.data(), kWindowBytes).ok());
        EXPECT_EQ(values, std::vector<float>(kFloats, float(10 * w) + sweeps * float(w + 1))) << w;
      }
    };
    const auto start = [&](float sweeps) {
      for (int64_t w = 0; w < kWindows; ++w) {
        const std::vector<float> half(kFloats / 2, float(10 * w) + sweeps * float(w + 1));
        ASSERT_TRUE((*memory)->Write(w, kWindowBytes / 2, half.data(), kWindowBytes / 2).ok());
        ASSERT_TRUE((*memory)->Write(w, 0, half.data(), kWindowBytes / 2).ok());
      }
    };
    ASSERT_TRUE(device->Synchronize().ok());
    simt::ResetCounters();
    engine::StatePager pager(memory->get());
    start(0);
    constexpr int kSweeps = 5;
    for (int sweep = 1; sweep <= kSweeps; ++sweep) {
      ASSERT_TRUE(pager.Prepare().ok());
      ASSERT_TRUE(pager.Sweep([&](int64_t w) { return pieces[w]->Run(); }).ok());
      if (sweep == 2) expect(2);
      if (sweep == 3) start(3);
    }
    expect(kSweeps);
    if (!c.managed || c.slots == 0) return;
    // Every byte that moved is counted, and moved no oftener than it must.
    const int64_t rest = kWindows - c.resident - c.slots;
    EXPECT_EQ(pager.bytes_in(), (kSweeps * rest + c.slots) * kWindowBytes);
    EXPECT_EQ(pager.bytes_out(), kSweeps * rest * kWindowBytes);
    EXPECT_EQ(simt::Counters().moved_in, pager.bytes_in());
    EXPECT_EQ(simt::Counters().moved_out, pager.bytes_out());
    EXPECT_LE(simt::Counters().managed_resident_peak, shape.DeviceBytes());
  }
  void TearDown() override { simt::SetCard({}); }
};

TEST_P(CudaPagedMemory, SweepsLoseNothingAndStayWithinTheBudget) {
  for (uint64_t seed = 1; seed <= 20; ++seed) Sweeps(seed);
}

INSTANTIATE_TEST_SUITE_P(Shapes, CudaPagedMemory,
                         testing::Values(Case{true, 0, 0}, Case{true, 0, 1}, Case{true, 0, 2},
                                         Case{true, 2, 3}, Case{true, 7, 0}, Case{false, 0, 0},
                                         Case{false, 0, 1}, Case{false, 0, 3}, Case{false, 2, 3},
                                         Case{false, 7, 0}),
                         [](const auto& info) {
                           const Case& c = info.param;
                           return std::string(c.managed ? "managed" : "pinned") +
                                  std::to_string(c.resident) + "resident" +
                                  std::to_string(c.slots) + "slots";
                         });

TEST(CudaPagedMemoryErrors, SaysWhenTheCardHasNoRoom) {
  simt::SetCard({.memory_bytes = 1 << 20, .concurrent_managed = false});
  auto device = *cuda::CreateCudaDevice({});
  const auto memory =
      device->AllocatePaged({.window_bytes = 1 << 20, .windows = 3, .resident = 2, .slots = 1});
  EXPECT_TRUE(absl::IsResourceExhausted(memory.status())) << memory.status();
  simt::SetCard({});
}

}  // namespace
}  // namespace qlora::kernels
