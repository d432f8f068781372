// The plan: it lists what the run allocates, and refuses what does not fit with a way out.

#include "engine/plan/plan.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/model/families.h"
#include "engine/plan/lifetimes.h"
#include "engine/plan/planner.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/run/model_run.h"
#include "tests/support/forwarding_device.h"
#include "tests/support/paths.h"

namespace qlora::engine {
namespace {

using testing::HasSubstr;

// A CPU that counts what it is asked for.
class CountingDevice : public kernels::optest::ForwardingDevice {
 public:
  CountingDevice() : ForwardingDevice(CpuDevice()) {}
  absl::StatusOr<kernels::Buffer> Allocate(int64_t bytes) override {
    allocated += bytes;
    return ForwardingDevice::Allocate(bytes);
  }
  absl::StatusOr<std::unique_ptr<kernels::PagedMemory>> AllocatePaged(
      const kernels::PagedShape& shape) override {
    allocated += shape.DeviceBytes();
    return ForwardingDevice::AllocatePaged(shape);
  }

  int64_t allocated = 0;
};

RecordOptions Training(const Dataset& data, proto::Mode::Value mode = proto::Mode::QLORA) {
  RecordOptions record = TrainingOptions("llama3_tied", data, 2, 4);
  record.storage.mode = mode;
  return record;
}

TEST(Plan, ListsExactlyWhatTheRunAllocates) {
  const Dataset data = GoldenDocuments("qlora_llama");
  for (const auto mode : {proto::Mode::QLORA, proto::Mode::LORA, proto::Mode::FULL}) {
    RecordOptions record = Training(data, mode);
    if (mode == proto::Mode::FULL) record.storage.lora = {};
    auto device = std::make_unique<CountingDevice>();
    CountingDevice& counting = *device;
    ModelRun run({.model = "llama3_tied", .record = record}, std::move(device));
    int64_t listed = 0;
    for (const PlanItem& item : run.plan().items) listed += item.bytes;
    EXPECT_EQ(listed, run.plan().total_bytes);
    EXPECT_EQ(counting.allocated + run.device().PrivateBytes(), listed);
    const int64_t before = counting.allocated;
    RunSteps(&run, data, 2, 4, 2);
    EXPECT_EQ(counting.allocated, before) << "a step allocated memory";
  }
}

// Of a run that may keep five windows of states on the device.
int64_t PagedBytes(bool may_lend) {
  const Dataset data = GoldenDocuments("qlora_llama");
  auto device = std::make_unique<CountingDevice>();
  CountingDevice& counting = *device;
  ModelRun run({.model = "llama3_tied",
                .record = Training(data),
                .paging = {.allowed = true,
                           .budget_bytes = 5 * 4096,
                           .may_lend = may_lend,
                           .window_bytes = 4096,
                           .folder = testing::TempDir()}},
               std::move(device));
  EXPECT_EQ(run.plan().paging.resident, 2);
  EXPECT_EQ(run.plan().paging.slots, 3);
  EXPECT_EQ(counting.allocated + run.device().PrivateBytes(), run.plan().total_bytes);
  return run.plan().total_bytes;
}

TEST(Plan, ListsWhatAPagedRunKeepsOnTheDevice) {
  const int64_t own = PagedBytes(/*may_lend=*/false);
  // Slots that activations lend take no memory.
  EXPECT_EQ(PagedBytes(/*may_lend=*/true), own - 3 * 4096);
}

class Refusal : public testing::Test {
 protected:
  Refusal()
      : data_(GoldenDocuments("qlora_llama")), spec_(*ReadModelConfig(Env::Default(), Folder())) {}
  static std::string Folder() { return tests::TestsDir() + "/golden/models/llama3_tied"; }

  absl::StatusOr<Plan> Make(const RecordOptions& record, int64_t memory,
                            proto::Recompute::Value recompute = proto::Recompute::AUTO,
                            bool paged = false) {
    return MakePlan(spec_, record, *device_, {.matmul_flops = 1e9, .memory_bytes = 1e9},
                    {.memory_bytes = memory,
                     .memory_source = "memory_limit",
                     .recompute = recompute,
                     .paging = {.allowed = paged},
                     .other = {{"this process", 1000}}});
  }

  Dataset data_;
  ModelSpec spec_;
  std::unique_ptr<kernels::Device> device_ = CpuDevice();
};

TEST_F(Refusal, NamesTheLargestItemsAndALimitThatDoes) {
  const RecordOptions record = Training(data_);
  const absl::StatusOr<Plan> plan = Make(record, 50000);
  ASSERT_EQ(plan.status().code(), absl::StatusCode::kResourceExhausted);
  const std::string message(plan.status().message());
  EXPECT_THAT(message, HasSubstr("memory_limit allows 48.8 KiB"));
  EXPECT_THAT(message, HasSubstr("84.0 KiB  gradients"));
  const size_t at = message.rfind("a memory limit of ");
  ASSERT_NE(at, std::string::npos) << message;
  const int64_t enough = std::stoll(message.substr(message.find('(', at) + 1));
  EXPECT_TRUE(Make(record, enough).ok());
  EXPECT_FALSE(Make(record, enough - 1).ok());
}

// Each remedy that is named does make the run fit, and one that would not is not named.
TEST_F(Refusal, RemediesWork) {
  RecordOptions record = Training(data_, proto::Mode::LORA);
  const int64_t all = Make(record, int64_t{1} << 40)->total_bytes;
  const int64_t least = Make(record, int64_t{1} << 40, proto::Recompute::FULL)->total_bytes;
  ASSERT_LT(least, all);
  const absl::StatusOr<Plan> kept = Make(record, least, proto::Recompute::NONE);
  ASSERT_FALSE(kept.ok());
  EXPECT_THAT(std::string(kept.status().message()), HasSubstr("training.recompute: AUTO"));
  EXPECT_TRUE(Make(record, least).ok());

  RecordOptions quantized = record;
  quantized.storage.mode = proto::Mode::QLORA;
  RecordOptions sequential = record;
  sequential.storage.pending_gradients = 0;
  RecordOptions small_states = record;
  small_states.storage.eight_bit_states = true;
  const struct {
    const char* text;
    const RecordOptions* changed;
    bool paged = false;
  } remedies[] = {{"mode: QLORA", &quantized},
                  {"training.gradient_sum: SEQUENTIAL", &sequential},
                  {"training.optim: PAGED_ADAMW_32BIT", &record, true},
                  {"training.optim: PAGED_ADAMW_8BIT", &small_states, true}};
  for (const int64_t missing : {1, 8000, 20000, 60000}) {
    const absl::StatusOr<Plan> plan = Make(record, least - missing);
    ASSERT_FALSE(plan.ok());
    for (const auto& remedy : remedies) {
      EXPECT_EQ(absl::StrContains(std::string(plan.status().message()),
                                  absl::StrCat("\n  ", remedy.text, " (")),
                Make(*remedy.changed, least - missing, proto::Recompute::AUTO, remedy.paged).ok())
          << remedy.text << " at " << missing << " bytes too few:\n"
          << plan.status().message();
    }
  }
}

// States leave memory before anything is recomputed; what is left over takes windows back; what
// host memory has no room for is refused.
TEST_F(Refusal, PagedStatesAreTheFirstToLeave) {
  const RecordOptions record = Training(data_);
  const int64_t all = Make(record, int64_t{1} << 40)->total_bytes;
  PlanLimits limits{.memory_bytes = all - 1,
                    .memory_source = "memory_limit",
                    .paging = {.allowed = true, .window_bytes = 4096},
                    .other = {{"this process", 1000}}};
  const MachineRates rates{.matmul_flops = 1e9, .memory_bytes = 1e9};
  const absl::StatusOr<Plan> most = MakePlan(spec_, record, *device_, rates, limits);
  ASSERT_TRUE(most.ok()) << most.status();
  EXPECT_EQ(Describe(most->recompute, 2), "nothing is recomputed");
  EXPECT_GT(most->paging.resident, 5);
  EXPECT_LT(most->paging.resident, most->paging.windows);
  EXPECT_GT(most->total_bytes + 4096, limits.memory_bytes) << "room for a window was left";
  limits.host_bytes = most->HostBytes() - 1;
  const absl::StatusOr<Plan> refused = MakePlan(spec_, record, *device_, rates, limits);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("in host memory, which has"));
}

TEST_F(Refusal, WhetherAnythingFitsIsWhatTheBestPlanTells) {
  const RecordOptions record = Training(data_);
  const MachineRates rates{.matmul_flops = 1e9, .memory_bytes = 1e9};
  const int64_t most = Make(record, int64_t{1} << 40)->total_bytes + 20'000;
  const int64_t least =
      Make(record, int64_t{1} << 40, proto::Recompute::FULL)->total_bytes - 200'000;
  int fitting = 0, tried = 0;
  for (const bool paged : {false, true}) {
    for (const int64_t host_bytes : {int64_t{1} << 40, int64_t{20'000}, int64_t{0}}) {
      for (const auto recompute :
           {proto::Recompute::AUTO, proto::Recompute::NONE, proto::Recompute::FULL}) {
        for (int64_t memory = least; memory < most; memory += 10'000) {
          const PlanLimits limits{.memory_bytes = memory,
                                  .recompute = recompute,
                                  .paging = {.allowed = paged, .window_bytes = 4096},
                                  .may_offload = true,
                                  .host_bytes = host_bytes};
          const Plan best = BestPlan(spec_, record, *device_, rates, limits);
          EXPECT_EQ(Planner(spec_, record, *device_, limits).CanFit(), Fits(best, limits))
              << memory << " " << paged << " " << host_bytes << " " << recompute;
          fitting += Fits(best, limits), ++tried;
        }
      }
    }
  }
  EXPECT_GT(fitting, tried / 10);
  EXPECT_LT(fitting, tried - tried / 10);
}

// Whoever shares bytes of the arena must not be alive at the same time.
TEST(Placement, BuffersAliveTogetherDoNotOverlap) {
  const Dataset data = GoldenDocuments("qlora_llama");
  for (const auto recompute : {proto::Recompute::NONE, proto::Recompute::FULL}) {
    ModelRun run({.model = "llama3_tied", .record = Training(data), .recompute = recompute},
                 CpuDevice());
    const Program& program = run.plan().run.program;
    int64_t shared = 0;
    for (const PieceProgram& piece : program.pieces()) {
      const std::vector<Lifetime> all = program.Lifetimes(piece);
      for (const Lifetime& a : all) {
        const int64_t a_begin = run.plan().placement.offset[a.buffer];
        const int64_t a_end = a_begin + program.buffers()[a.buffer].bytes;
        ASSERT_GE(a_begin, 0);
        ASSERT_LE(a_end, run.plan().placement.bytes);
        for (const Lifetime& b : all) {
          if (b.buffer <= a.buffer) continue;
          const int64_t b_begin = run.plan().placement.offset[b.buffer];
          const int64_t b_end = b_begin + program.buffers()[b.buffer].bytes;
          const bool same_bytes = a_begin < b_end && b_begin < a_end;
          // An op that works in place ends one and begins the other.
          const bool handed_over =
              a_begin == b_begin && a_end == b_end && (a.last == b.first || b.last == a.first);
          const bool same_time = a.first <= b.last && b.first <= a.last && !handed_over;
          EXPECT_FALSE(same_bytes && same_time)
              << program.buffers()[a.buffer].name << " and " << program.buffers()[b.buffer].name;
          shared += same_bytes;
        }
      }
    }
    EXPECT_GT(shared, 100) << "nothing shares memory";
    EXPECT_LE(LeastArenaBytes(program), run.plan().placement.bytes);
  }
}

}  // namespace
}  // namespace qlora::engine
