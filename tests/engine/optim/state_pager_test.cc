// The state pager over a memory that moves nothing and watches every step: no use before arrival,
// no departure before use is done, never more windows on the device than a phase allows.

#include "engine/optim/state_pager.h"

#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace qlora::engine {
namespace {

constexpr int64_t kWindowBytes = 4096, kWindows = 9;

class WatchedMemory : public kernels::PagedMemory {
 public:
  explicit WatchedMemory(kernels::PagedShape shape)
      : PagedMemory(std::move(shape)), slot_(this->shape().slots, -1) {}

  // How many slots may hold a window now.
  int64_t budget = 0;
  int64_t most_there = 0;

  void* Address(int64_t) const override { return nullptr; }
  absl::Status Bring(int64_t w) override {
    EXPECT_FALSE(shape().IsResident(w));
    if (shape().slots == 0) return absl::OkStatus();
    EXPECT_LT(shape().SlotOf(w), budget) << "window " << w << " has no room yet";
    EXPECT_EQ(slot_[shape().SlotOf(w)], -1) << "window " << w << " comes to a slot that is taken";
    slot_[shape().SlotOf(w)] = w;
    most_there = std::max(most_there, There());
    return absl::OkStatus();
  }
  absl::Status Await(int64_t w) override {
    if (shape().slots > 0) {
      EXPECT_EQ(slot_[shape().SlotOf(w)], w) << "was not brought";
    }
    usable_.insert(w);
    return absl::OkStatus();
  }
  absl::Status Evict(int64_t w) override {
    EXPECT_TRUE(usable_.contains(w)) << "window " << w << " leaves before it was there";
    EXPECT_TRUE(updated_.contains(w)) << "window " << w << " leaves before its update";
    usable_.erase(w);
    if (shape().slots > 0) slot_[shape().SlotOf(w)] = -1;
    return absl::OkStatus();
  }
  absl::Status Reclaim(int64_t slot) override {
    EXPECT_EQ(slot_[slot], -1) << "slot " << slot << " is wanted back";
    return absl::OkStatus();
  }
  absl::Status Claim(int64_t) override { return absl::UnimplementedError("Claim"); }
  absl::Status Drop(int64_t) override { return absl::UnimplementedError("Drop"); }
  absl::Status Read(int64_t, int64_t, void*, int64_t) override { return absl::OkStatus(); }
  absl::Status Write(int64_t, int64_t, const void*, int64_t) override { return absl::OkStatus(); }

  void Update(int64_t w) {
    EXPECT_TRUE(shape().IsResident(w) || usable_.contains(w)) << "window " << w << " is not there";
    EXPECT_TRUE(updated_.insert(w).second) << "window " << w << " is updated twice";
  }
  void BeginStep() { updated_.clear(); }
  int64_t updated() const { return int64_t(updated_.size()); }
  int64_t There() const {
    return int64_t(slot_.size()) - std::count(slot_.begin(), slot_.end(), -1);
  }

 private:
  std::vector<int64_t> slot_;
  std::set<int64_t> usable_, updated_;
};

struct Case {
  int64_t resident, slots;
  bool lent = false;
};

// As the plan joins windows.
std::vector<WindowRange> RangesOf(const kernels::PagedShape& shape) {
  std::vector<WindowRange> ranges;
  for (int64_t w = 0; w < shape.windows; ++w) {
    if (w > 0 && shape.AreNeighbours(w - 1)) {
      ++ranges.back().count;
    } else {
      ranges.push_back({w, 1});
    }
  }
  return ranges;
}

class Pager : public testing::TestWithParam<Case> {};

TEST_P(Pager, KeepsToTheBudgetOfEveryPhase) {
  const Case& c = GetParam();
  kernels::PagedShape shape{
      .window_bytes = kWindowBytes, .windows = kWindows, .resident = c.resident, .slots = c.slots};
  // The third slot does not lie behind the second.
  for (int64_t s = 0; c.lent && s < c.slots; ++s) {
    shape.lent_offsets.push_back((s + (s > 1)) * kWindowBytes);
  }
  WatchedMemory memory(shape);
  const std::vector<WindowRange> ranges = RangesOf(shape);
  StatePager pager(&memory, ranges);
  constexpr int kSteps = 4;
  for (int step = 0; step < kSteps; ++step) {
    memory.BeginStep();
    if (c.lent) {
      memory.budget = 0;
      for (int64_t s = 0; s < c.slots; ++s) ASSERT_TRUE(memory.Reclaim(s).ok());
      for (; memory.budget < c.slots; memory.budget += 2) {
        ASSERT_TRUE(pager.Grow(memory.budget).ok());
        EXPECT_EQ(memory.There(), std::min(memory.budget, c.slots));
      }
    }
    memory.budget = c.slots;
    const auto update = [&](int64_t range) {
      for (int64_t k = 0; k < ranges[range].count; ++k) memory.Update(ranges[range].first + k);
      return absl::OkStatus();
    };
    ASSERT_TRUE(pager.Sweep(update).ok());
    EXPECT_EQ(memory.updated(), kWindows);
    EXPECT_EQ(memory.There(), c.lent ? 0 : c.slots);
  }
  EXPECT_EQ(memory.most_there, c.slots);
  const int64_t away = kWindows - c.resident;
  const int64_t stay = c.lent ? 0 : c.slots;  // from one sweep to the next
  EXPECT_EQ(pager.bytes_out(), kSteps * (away - stay) * kWindowBytes);
  EXPECT_EQ(pager.bytes_in(), (kSteps * (away - stay) + stay) * kWindowBytes);
}

INSTANTIATE_TEST_SUITE_P(Shapes, Pager,
                         testing::Values(Case{0, 0}, Case{0, 1}, Case{2, 3}, Case{9, 0},
                                         Case{0, 9, true}, Case{4, 5, true}, Case{0, 4, true},
                                         Case{3, 1, true}, Case{6, 2, true}),
                         [](const auto& info) {
                           return absl::StrCat(info.param.resident, "resident", info.param.slots,
                                               info.param.lent ? "lent" : "own");
                         });

// One launch for what lies side by side and is there together; windows that take turns come alone.
TEST(WindowRanges, AreWhatIsThereTogether) {
  const auto counts = [](const kernels::PagedShape& shape) {
    std::vector<int64_t> result;
    for (const WindowRange& range : RangesOf(shape)) result.push_back(range.count);
    return result;
  };
  constexpr int64_t kW = kWindowBytes;
  using Counts = std::vector<int64_t>;
  const kernels::PagedShape none{.window_bytes = kW, .windows = 5, .resident = 2};
  EXPECT_EQ(counts(none), Counts({2, 3}));
  const kernels::PagedShape own{.window_bytes = kW, .windows = 5, .resident = 2, .slots = 2};
  EXPECT_EQ(counts(own), Counts({2, 1, 1, 1}));
  kernels::PagedShape lent = own;
  lent.lent_offsets = {0, kW};
  EXPECT_EQ(counts(lent), Counts({2, 1, 1, 1}));
  lent.slots = 3;
  lent.lent_offsets = {kW, 2 * kW, 0};
  EXPECT_EQ(counts(lent), Counts({2, 2, 1}));
}

}  // namespace
}  // namespace qlora::engine
