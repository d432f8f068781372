// Of the ranks of a machine one reads the weights and hands them to the others.

#include <map>
#include <string>
#include <vector>

#include "tests/engine/model/loading_fixture.h"
#include "tests/engine/run/model_run.h"
#include "tests/support/thread_ranks.h"

namespace qlora::engine {
namespace {

// The same tensors, every byte 0xff: not a number in any type, and no valid scale.
ShardedModel Unreadable(const std::string& golden, const tests::TempFolder& folder) {
  EditableModel model(golden);
  for (auto& [name, entry] : model.tensors) entry.bytes.assign(entry.bytes.size(), '\xff');
  return model.Save(folder);
}

class SharedLoading : public testing::TestWithParam<const char*> {};

// Two machines of two ranks: the second of each would notice if it looked at its file.
TEST_P(SharedLoading, OneRankOfEachMachineReads) {
  const ShardedModel model = OpenGolden(GetParam());
  const tests::TempFolder folder;
  const ShardedModel unreadable = Unreadable(GetParam(), folder);
  TestRun alone(model, {});
  ASSERT_TRUE(alone.Load(model).ok());
  ASSERT_FALSE(TestRun(model, {}).Load(unreadable).ok());
  const auto expected = alone.Snapshot();
  const std::vector<int> machines[] = {{0, 1}, {2, 3}};
  tests::OnRanks(
      4, {}, [](int) { return CpuDevice(); },
      [&](Ranks& ranks, kernels::Device* device) {
        const std::vector<int>& here = machines[ranks.rank() / 2];
        HostExchange exchange(&ranks.comm(), device, nullptr, 0);
        const SharedReading reading{&exchange, here};
        TestRun run(model, {});
        const absl::Status loaded =
            LoadWeights(reading.reads() ? model : unreadable, run.execution.get(), {}, reading);
        EXPECT_TRUE(loaded.ok()) << loaded;
        EXPECT_EQ(run.Snapshot(), expected) << "rank " << ranks.rank();
        EXPECT_EQ(reading.reads(), ranks.rank() % 2 == 0);
        ASSERT_TRUE(ranks.control().AllGather("all have loaded", "").ok());
      });
}

INSTANTIATE_TEST_SUITE_P(Models, SharedLoading,
                         testing::Values("llama3_tied", "prequantized/nf4_double"),
                         [](const auto& info) {
                           return std::string(info.index == 0 ? "in_16_bits" : "in_4_bits");
                         });

}  // namespace
}  // namespace qlora::engine
