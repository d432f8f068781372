// Paged memory of the CUDA backend over the executor's runtime, whose streams overtake each other
// wherever events allow it.

#include "kernels/paged_memory.h"

#include <cstring>
#include <memory>
#include <optional>
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
  bool lent = false;
};

// Something else that uses lent slots between two updates: fills them, and adds what it finds there
// to a sum, so that a window that comes too early or leaves too late shows on either side.
class OtherUse {
 public:
  OtherUse(Device* device, void* slots, int64_t count) {
    const int64_t floats = count * kFloats;
    sum_ = *device->Allocate(2 * count * kWindowBytes);
    uint8_t* const ones = static_cast<uint8_t*>(sum_.data()) + count * kWindowBytes;
    const std::vector<float> values(floats, 1.0f);
    EXPECT_TRUE(device->CopyIn(ones, values.data(), count * kWindowBytes).ok());
    const auto row = [&](void* at) { return Tensor{at, DType::kF32, 1, floats, floats}; };
    piece_ = *device->Prepare({Zero{row(slots)}, AddGradient{.from = row(ones), .into = row(slots)},
                               AddGradient{.from = row(slots), .into = row(sum_.data())}});
  }
  absl::Status Run() { return ++runs_, piece_->Run(); }
  void Expect(Device* device, int64_t count) {
    std::vector<float> values(count * kFloats);
    ASSERT_TRUE(device->Synchronize().ok());
    ASSERT_TRUE(device->CopyOut(values.data(), sum_.data(), count * kWindowBytes).ok());
    EXPECT_EQ(values, std::vector<float>(count * kFloats, float(runs_)));
  }

 private:
  Buffer sum_;
  std::unique_ptr<Piece> piece_;
  int64_t runs_ = 0;
};

// A range for each window: neighbours are joined by the plan.
std::vector<engine::WindowRange> Singles() {
  std::vector<engine::WindowRange> ranges;
  for (int64_t w = 0; w < kWindows; ++w) ranges.push_back({w, 1});
  return ranges;
}

class CudaPagedMemory : public testing::TestWithParam<Case> {
 protected:
  // Each sweep adds window w + 1 to every element of window w; the expected sums are exact.
  void Sweeps(uint64_t seed) {
    const Case& c = GetParam();
    simt::SetCard({.concurrent_managed = c.managed, .remote_access = c.slots == 0, .seed = seed});
    auto device = *cuda::CreateCudaDevice({});
    PagedShape shape{.window_bytes = kWindowBytes,
                     .windows = kWindows,
                     .resident = c.resident,
                     .slots = c.slots,
                     .page_locked = c.lent};
    absl::StatusOr<Buffer> lent = device->Allocate(c.slots * kWindowBytes);
    ASSERT_TRUE(lent.ok());
    std::optional<OtherUse> other;
    if (c.lent) {
      shape.lent = lent->data();
      for (int64_t s = 0; s < c.slots; ++s) shape.lent_offsets.push_back((s ^ 1) * kWindowBytes);
      other.emplace(device.get(), lent->data(), c.slots);
    }
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
    engine::StatePager pager(memory->get(), Singles());
    start(0);
    constexpr int kSweeps = 5;
    for (int sweep = 1; sweep <= kSweeps; ++sweep) {
      for (int64_t s = 0; c.lent && s < c.slots; ++s) {
        ASSERT_TRUE((*memory)->Reclaim(s).ok());
      }
      if (other) {
        ASSERT_TRUE(other->Run().ok());
      }
      ASSERT_TRUE(pager.Grow(1).ok());
      ASSERT_TRUE(pager.Sweep([&](int64_t w) { return pieces[w]->Run(); }).ok());
      if (sweep == 2) expect(2);
      if (sweep == 3) start(3);
    }
    expect(kSweeps);
    if (c.lent) {
      other->Expect(device.get(), c.slots);
      EXPECT_EQ(pager.bytes_in(), kSweeps * (kWindows - c.resident) * kWindowBytes);
      EXPECT_EQ(pager.bytes_out(), pager.bytes_in());
      return;
    }
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
                                         Case{false, 7, 0}, Case{true, 0, 4, true},
                                         Case{true, 1, 6, true}, Case{false, 3, 2, true}),
                         [](const auto& info) {
                           const Case& c = info.param;
                           return std::string(c.lent      ? "lent"
                                              : c.managed ? "managed"
                                                          : "pinned") +
                                  std::to_string(c.resident) + "resident" +
                                  std::to_string(c.slots) + "slots";
                         });

TEST(CudaPagedMemoryErrors, SaysThatALentSlotIsStillTaken) {
  auto device = *cuda::CreateCudaDevice({});
  auto lent = *device->Allocate(2 * kWindowBytes);
  const auto memory = *device->AllocatePaged({.window_bytes = kWindowBytes,
                                              .windows = 2,
                                              .slots = 2,
                                              .page_locked = true,
                                              .lent_offsets = {0, kWindowBytes},
                                              .lent = lent.data()});
  ASSERT_TRUE(memory->Bring(1).ok());
  EXPECT_TRUE(memory->Reclaim(0).ok());
  EXPECT_TRUE(absl::IsInternal(memory->Reclaim(1)));
}

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
