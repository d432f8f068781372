// A recorded run over a golden model, with memory behind it: what the tests of whole passes and
// steps share.
#ifndef QLORA_TESTS_ENGINE_RUN_MODEL_RUN_H_
#define QLORA_TESTS_ENGINE_RUN_MODEL_RUN_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/comm/host_exchange.h"
#include "engine/comm/ranks.h"
#include "engine/data/batcher.h"
#include "engine/io/checkpoint_files.h"
#include "engine/plan/plan.h"
#include "engine/step/execution.h"
#include "engine/step/step.h"
#include "kernels/device.h"

namespace qlora::engine {

std::unique_ptr<kernels::Device> CpuDevice(int threads = 1);

// The documents of an expected.safetensors, one sample each: those whose labels are not −100 are
// trained; without labels every token but the first.
Dataset GoldenDocuments(const std::string& golden);

// All seven linears of every layer.
LoraTargets AllLinears(const ModelSpec& spec, int r, double alpha, bool rslora);

class ModelRun {
 public:
  struct Options {
    std::string model;    // folder below tests/golden/models
    std::string adapter;  // likewise, a PEFT folder; empty: B starts from zero, A from `seed`
    RecordOptions record;
    proto::Recompute::Value recompute = proto::Recompute::NONE;
    int64_t memory_limit = int64_t{1} << 30;
    uint64_t seed = 7;
    PagingLimits paging;
    bool may_offload = false;
    proto::KernelSelection::Value kernels = proto::KernelSelection::TABLE;
    // Mode FULL: so many layers of the model's kind, with random weights. 0: the model as it is.
    int64_t random_layers = 0;
  };
  // Records, plans, allocates and loads. Aborts the test where that fails.
  // With `ranks`, all of them make one: the first one reads the model for the others.
  ModelRun(Options options, std::unique_ptr<kernels::Device> device, Ranks* ranks = nullptr);
  ModelRun(const ModelRun&) = delete;  // the execution refers to plan_

  Execution& execution() { return *execution_; }
  const Plan& plan() const { return plan_; }
  const Storage& storage() const { return plan_.run.storage; }
  kernels::Device& device() { return *device_; }

  template <class T>
  std::vector<T> Values(kernels::ConstTensor view) {
    std::vector<T> values(view.Extent() / sizeof(T));
    Read(view, values.data());
    return values;
  }
  // Rows of a flat view that belong to the parameter with this name.
  std::vector<float> Parameter(const std::string& name, kernels::Tensor flat);
  // A of every module of a course from `seed`, B zero.
  void StartAdapter(int64_t course, uint64_t seed);
  // Everything that a step leaves behind: masters, copies, moments, gradients.
  std::string StateBytes();

 private:
  void Read(kernels::ConstTensor view, void* to);

  std::unique_ptr<kernels::Device> device_;
  kernels::Buffer staging_;                 // of exchange_
  std::unique_ptr<HostExchange> exchange_;  // null without ranks
  Plan plan_;
  std::unique_ptr<Execution> execution_;
};

// The options of a QLoRA training run over `data`, in micro-batches of `rows` samples.
RecordOptions TrainingOptions(const std::string& model, const Dataset& data, int64_t rows,
                              int64_t micro_batches);

// A kind of training run, for tests that go through several.
struct RunKind {
  const char* name;
  const char* model;
  proto::Mode::Value mode = proto::Mode::QLORA;
  kernels::DType compute = kernels::DType::kBf16;
  bool eight_bit_states = false;
};
RecordOptions TrainingOptions(const RunKind& kind, const Dataset& data, int64_t rows,
                              int64_t micro_batches);

// Runs `steps` steps with constant rate 1e-3 on micro-batches of `rows` samples; with `ranks`, this
// one's share of the `micro_batches`.
std::vector<StepResult> RunSteps(ModelRun* run, const Dataset& data, int64_t rows,
                                 int64_t micro_batches, int64_t steps, int64_t first_step = 0,
                                 Ranks* ranks = nullptr);

}  // namespace qlora::engine

#endif  // QLORA_TESTS_ENGINE_RUN_MODEL_RUN_H_
