// What large models take on a GPU, by the plan alone: nothing is allocated.

#include <memory>
#include <string>
#include <utility>

#include "engine/comm/nccl_memory.h"
#include "engine/lora/targets.h"
#include "engine/model/config_reader.h"
#include "engine/model/families.h"
#include "engine/plan/plan.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/support/paths.h"

namespace qlora::engine {
namespace {

struct Case {
  const char* name;
  const char* model;  // below bench/models
  int rank;
  int64_t tokens;
  int64_t device_bytes;  // that the whole process may take
  bool offloads;         // whether layer inputs must leave the device
  int ranks = 1;         // that share out the base and the states
};

// What a CUDA context with the kernels and cuBLASLt's workspace takes beside the plan.
constexpr int64_t kContextBytes = int64_t{600} << 20;

class LargeModel : public testing::TestWithParam<Case> {};

TEST_P(LargeModel, FitsByPlan) {
  const Case& c = GetParam();
  const absl::StatusOr<ModelSpec> spec =
      ReadModelConfig(Env::Default(), tests::SourceDir() + "/bench/models/" + c.model);
  ASSERT_TRUE(spec.ok()) << spec.status();
  proto::Lora lora;
  lora.set_r(c.rank);
  lora.set_lora_alpha(16);
  lora.add_target_modules("all-linear");
  RecordOptions record;
  record.storage.lora = {*ResolveLoraTargets(lora, WeightRows(*spec))};
  record.storage.rope_positions = c.tokens;
  record.storage.ranks = c.ranks;
  record.storage.shard_states = record.storage.shard_base = c.ranks > 1;
  record.train = {.tokens = c.tokens, .documents = 1, .trained_rows = c.tokens - 1};
  const auto device = *kernels::cuda::CreateCudaDevice({});
  const PlanLimits limits{.memory_bytes = c.device_bytes,
                          .memory_source = "the card",
                          .paging = {.allowed = true},
                          .may_offload = true,
                          .other = {{"context and libraries", kContextBytes},
                                    {"NCCL", NcclDeviceBytes(c.ranks, c.ranks, {})}}};
  const absl::StatusOr<Plan> plan =
      MakePlan(*spec, record, *device, {.matmul_flops = 5e14, .memory_bytes = 2e12}, limits);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_LE(plan->total_bytes, c.device_bytes);
  EXPECT_EQ(plan->recompute.offloaded_layers > 0, c.offloads) << PlanTable(*plan, limits);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, LargeModel,
    testing::Values(Case{"llama3_8b_78000_tokens", "llama3_8b", 16, 78000, int64_t{24} << 30, true},
                    Case{"llama_33b", "llama_33b", 64, 1024, 24'000'000'000, false},
                    Case{"llama_65b", "llama_65b", 64, 2048, 48'000'000'000, false},
                    Case{"llama3_70b_on_two", "llama3_70b", 16, 512, int64_t{24} << 30, true, 2}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace qlora::engine
