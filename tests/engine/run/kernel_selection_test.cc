// Which kernels a run takes, on a device that has several and of which one may be wrong.

#include "engine/step/kernel_selection.h"

#include <chrono>
#include <thread>

#include "engine/model/families.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/run/model_run.h"
#include "tests/support/forwarding_device.h"
#include "tests/support/paths.h"

namespace qlora::engine {
namespace {

using kernels::LinearForward;
using kernels::LinearVariant;
using kernels::Op;
using testing::HasSubstr;

// The CPU, which pretends to have two kernels for a linear op.
class TwoKernels : public kernels::optest::ForwardingDevice {
 public:
  // The one that may be wrong.
  struct First {
    double scale_error = 0;  // of an adapter's scale
    bool slow = false;
    bool not_finite = false;
    LinearVariant variant = LinearVariant::kFused, other = LinearVariant::kDequantized;
  };
  explicit TwoKernels(First first) : ForwardingDevice(CpuDevice()), first_(first) {}

  std::vector<LinearVariant> Variants(const Op& op) const override {
    const bool linear = std::holds_alternative<LinearForward>(op) ||
                        std::holds_alternative<kernels::LinearBackwardInput>(op);
    if (!linear) return {LinearVariant::kFused};
    return {first_.variant, first_.other};
  }
  absl::StatusOr<std::unique_ptr<kernels::Piece>> Prepare(std::vector<Op> ops) override {
    int slow_ops = 0;
    for (Op& op : ops) {
      std::visit(
          [&](auto& o) {
            if constexpr (requires { o.variant; }) {
              if (o.variant != first_.variant) return;
              slow_ops += first_.slow;
              for (auto& segment : o.adapters) {
                segment.scale *= float(1 + first_.scale_error);
                if (first_.not_finite) segment.scale = NAN;
              }
            }
          },
          op);
    }
    auto piece = ForwardingDevice::Prepare(std::move(ops));
    if (!piece.ok() || slow_ops == 0) return piece;
    return std::make_unique<SlowPiece>(*std::move(piece), std::chrono::milliseconds(slow_ops));
  }

 private:
  class SlowPiece : public kernels::Piece {
   public:
    SlowPiece(std::unique_ptr<kernels::Piece> inner, std::chrono::milliseconds delay)
        : inner_(std::move(inner)), delay_(delay) {}
    absl::Status Run() override {
      std::this_thread::sleep_for(delay_);
      return inner_->Run();
    }

   private:
    const std::unique_ptr<kernels::Piece> inner_;
    const std::chrono::milliseconds delay_;
  };

  const First first_;
};

class KernelSelectionTest : public testing::Test {
 protected:
  KernelSelectionTest() {
    const Dataset data = GoldenDocuments("qlora_llama");
    const auto spec = ReadModelConfig(Env::Default(), tests::TestsDir() + "/golden/models/qwen3");
    ops_ = Record(*spec, TrainingOptions("qwen3", data, 1, 2), *CpuDevice()).program.Ops();
  }
  KernelSelection Select(TwoKernels::First first, proto::KernelSelection::Value mode,
                         const EarlierChoices& earlier = {}) {
    TwoKernels device(first);
    warnings_.clear();
    auto selection = SelectKernels(ops_, mode, earlier, &device, &warnings_);
    EXPECT_TRUE(selection.ok()) << selection.status();
    return *std::move(selection);
  }
  // How many shapes took the variant.
  static int Count(const KernelSelection& selection, LinearVariant variant) {
    int count = 0;
    for (const auto& [key, chosen] : selection.choices()) count += chosen == variant;
    return count;
  }

  std::vector<Op> ops_;
  std::vector<std::string> warnings_;
};

TEST_F(KernelSelectionTest, TheTableOrTheNamedOne) {
  const KernelSelection table = Select({}, proto::KernelSelection::TABLE);
  EXPECT_GT(Count(table, LinearVariant::kFused), 5);
  EXPECT_EQ(Count(table, LinearVariant::kDequantized), 0);
  const KernelSelection named = Select({}, proto::KernelSelection::DEQUANTIZED);
  EXPECT_EQ(Count(named, LinearVariant::kDequantized), Count(table, LinearVariant::kFused));
  // What the device does not have is not chosen.
  EXPECT_EQ(Select({}, proto::KernelSelection::HOPPER).choices(), table.choices());
  EXPECT_THAT(warnings_, testing::IsEmpty());
}

TEST_F(KernelSelectionTest, AKernelThatComputesSomethingElseIsRefused) {
  for (const TwoKernels::First wrong :
       {TwoKernels::First{.scale_error = 0.5}, TwoKernels::First{.not_finite = true}}) {
    const KernelSelection selection = Select(wrong, proto::KernelSelection::TABLE);
    EXPECT_EQ(Count(selection, LinearVariant::kFused), 0);
    ASSERT_FALSE(warnings_.empty());
    EXPECT_THAT(warnings_[0], HasSubstr("linear_forward"));
    EXPECT_THAT(warnings_[0], HasSubstr("kernel FUSED differs from DEQUANTIZED"));
  }
}

TEST_F(KernelSelectionTest, WithoutTheLibraryTheFusedKernelIsWhatOthersAreHeldAgainst) {
  TwoKernels::First hopper{.variant = LinearVariant::kHopper, .other = LinearVariant::kFused};
  EXPECT_EQ(Count(Select(hopper, proto::KernelSelection::HOPPER), LinearVariant::kFused), 0);
  EXPECT_THAT(warnings_, testing::IsEmpty());
  hopper.scale_error = 0.5;
  EXPECT_EQ(Count(Select(hopper, proto::KernelSelection::HOPPER), LinearVariant::kHopper), 0);
  ASSERT_FALSE(warnings_.empty());
  EXPECT_THAT(warnings_[0], HasSubstr("kernel HOPPER differs from FUSED"));
}

TEST_F(KernelSelectionTest, MeasuredTakesTheFaster) {
  // A millisecond more than the pretended kernels otherwise take: far above what these shapes do.
  const KernelSelection selection = Select({.slow = true}, proto::KernelSelection::MEASURED);
  EXPECT_EQ(Count(selection, LinearVariant::kFused), 0);
  EXPECT_EQ(
      Count(Select({.slow = true}, proto::KernelSelection::TABLE), LinearVariant::kDequantized), 0);
}

TEST_F(KernelSelectionTest, AnEarlierChoiceWins) {
  const KernelSelection before = Select({}, proto::KernelSelection::DEQUANTIZED);
  EarlierChoices earlier;
  for (const auto& [key, variant] : before.choices()) earlier[key] = kernels::NameOf(variant);
  EXPECT_EQ(Select({}, proto::KernelSelection::TABLE, earlier).choices(), before.choices());
  EXPECT_THAT(warnings_, testing::IsEmpty());
  // One that this machine lacks is said, and replaced.
  earlier.begin()->second = "HOPPER";
  const KernelSelection other = Select({}, proto::KernelSelection::TABLE, earlier);
  EXPECT_EQ(Count(other, LinearVariant::kFused), 1);
  ASSERT_EQ(warnings_.size(), 1);
  EXPECT_THAT(warnings_[0], HasSubstr("began with kernel HOPPER"));
}

}  // namespace
}  // namespace qlora::engine
