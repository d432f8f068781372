// Adapters' first products that norms make along: recorded where the device says so, and no byte of
// a run is another one for it, since the CPU makes them by the same sums either way.

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/run/together_run.h"
#include "tests/support/forwarding_device.h"

namespace qlora::engine {
namespace {

// A CPU that says that its norms make the products of adapters up to a rank.
class FusingDevice : public kernels::optest::ForwardingDevice {
 public:
  explicit FusingDevice(int64_t rank) : ForwardingDevice(CpuDevice(1)), rank_(rank) {}
  int64_t FirstProductRank(const kernels::Op& op) const override {
    return std::holds_alternative<kernels::RmsNormForward>(op) ? rank_ : 0;
  }

 private:
  const int64_t rank_;
};

struct Counts {
  int64_t made = 0;   // by norms
  int64_t given = 0;  // to linear ops
  int64_t own = 0;    // made by linear ops themselves
  bool operator==(const Counts&) const = default;
};
Counts CountsOf(const PieceProgram& piece) {
  Counts counts;
  for (const kernels::Op& op : piece.ops) {
    if (const auto* norm = std::get_if<kernels::RmsNormForward>(&op)) {
      counts.made += int64_t(norm->products.size());
    }
    const auto* linear = std::get_if<kernels::LinearForward>(&op);
    for (size_t i = 0; linear != nullptr && i < linear->adapters.size(); ++i) {
      const bool is_given = linear->adapters[i].IsLowGiven();
      (is_given ? counts.given : counts.own) += 1;
      EXPECT_EQ(is_given, !linear->low[i]);
    }
  }
  return counts;
}

ModelRun::Options Options(const Dataset& data, proto::Recompute::Value recompute) {
  RecordOptions record = TrainingOptions("llama3_tied", data, 1, 2);
  for (LoraTargets& lora : record.storage.lora) lora.dropout = 0.25f;
  return {.model = "llama3_tied", .record = record, .recompute = recompute};
}

const PieceProgram& MicroBatchOf(const ModelRun& run) {
  return run.plan().run.program.pieces()[run.plan().run.train->micro_batch];
}

TEST(FirstProducts, AreMadeByNormsUpToTheDevicesRank) {
  const Dataset data = GoldenDocuments("qlora_llama");
  const auto counts = [&](int64_t rank) {
    const ModelRun run(Options(data, proto::Recompute::NONE), std::make_unique<FusingDevice>(rank));
    return CountsOf(MicroBatchOf(run));
  };
  const ModelRun plain(Options(data, proto::Recompute::NONE), CpuDevice(1));
  const int64_t layers = plain.storage().spec.layers;
  const int64_t rank = plain.storage().options.lora.front().modules.front().rank;
  // Five of a layer's seven linears read a norm.
  EXPECT_EQ(CountsOf(MicroBatchOf(plain)), (Counts{0, 0, 7 * layers}));
  EXPECT_EQ(counts(rank), (Counts{5 * layers, 5 * layers, 2 * layers}));
  EXPECT_EQ(counts(rank - 1), (Counts{0, 0, 7 * layers}));
}

TEST(FirstProducts, ChangeNoByteHoweverMuchIsRecomputed) {
  const Dataset data = GoldenDocuments("qlora_llama");
  const auto train = [&](std::unique_ptr<kernels::Device> device,
                         proto::Recompute::Value recompute) {
    ModelRun run(Options(data, recompute), std::move(device));
    // A product is made once, whatever is computed again.
    const Counts counts = CountsOf(MicroBatchOf(run));
    EXPECT_EQ(counts.made, counts.given == 0 ? 0 : 5 * run.storage().spec.layers);
    EXPECT_EQ(recompute == proto::Recompute::FULL, run.plan().recompute_cost.ops > 0);
    RunSteps(&run, data, 1, 2, 3);
    return run.StateBytes();
  };
  const std::string expected = train(CpuDevice(1), proto::Recompute::NONE);
  for (const auto recompute : {proto::Recompute::NONE, proto::Recompute::FULL}) {
    EXPECT_TRUE(train(std::make_unique<FusingDevice>(64), recompute) == expected) << recompute;
  }
}

// Ranks 4, 2 and 3 of which the device takes two: an adapter's products do not depend on what the
// others' are made by.
TEST(FirstProducts, ChangeNoByteOfAdaptersBesideEachOther) {
  const std::vector<Customer> customers = Customers();
  const std::vector<size_t> members = {0, 1, 3};
  const std::vector<Left> expected = TrainMembers({}, customers, members, CpuDevice(1));
  const std::vector<Left> found =
      TrainMembers({}, customers, members, std::make_unique<FusingDevice>(3));
  for (size_t m = 0; m < members.size(); ++m) {
    EXPECT_TRUE(found[m] == expected[m]) << "customer " << members[m];
  }
}

}  // namespace
}  // namespace qlora::engine
