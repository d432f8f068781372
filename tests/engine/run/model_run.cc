#include "tests/engine/run/model_run.h"

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "engine/checkpoint/checkpoint.h"
#include "engine/lora/initialize.h"
#include "engine/model/families.h"
#include "engine/model/load_weights.h"
#include "gmock/gmock.h"
#include "kernels/cpu/cpu_device.h"
#include "tests/engine/model/golden_files.h"

namespace qlora::engine {
namespace {

// A fixture that can't be made leaves nothing to test.
void Require(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::abort();
}

template <class T>
T Require(absl::StatusOr<T> value) {
  Require(value.status());
  return *std::move(value);
}

}  // namespace

std::unique_ptr<kernels::Device> CpuDevice(int threads) {
  return Require(kernels::cpu::CreateCpuDevice({.threads = threads}));
}

Dataset GoldenDocuments(const std::string& golden) {
  const SafetensorsFile file = Require(
      SafetensorsFile::Open(Env::Default(), GoldenModelPath(golden + "/expected.safetensors")));
  const auto ids = TensorValues<int32_t>(file, "input_ids");
  const auto labels = file.Find("labels") != nullptr ? TensorValues<int32_t>(file, "labels")
                                                     : std::vector<int32_t>();
  Dataset data;
  size_t begin = 0;
  for (const int32_t length : TensorValues<int32_t>(file, "document_lengths")) {
    Sample sample;
    for (size_t i = begin; i < begin + length; ++i) {
      sample.ids.push_back(ids[i]);
      sample.trained.push_back(labels.empty() ? i > begin : labels[i] != -100);
    }
    begin += length;
    data.report.longest = std::max<int64_t>(data.report.longest, length);
    data.samples.push_back(std::move(sample));
  }
  return data;
}

LoraTargets AllLinears(const ModelSpec& spec, int r, double alpha, bool rslora) {
  proto::Lora lora;
  lora.set_r(r);
  lora.set_lora_alpha(alpha);
  lora.set_use_rslora(rslora);
  lora.add_target_modules("all-linear");
  return Require(ResolveLoraTargets(lora, WeightRows(spec)));
}

ModelRun::ModelRun(Options options, std::unique_ptr<kernels::Device> device, Ranks* ranks)
    : device_(std::move(device)) {
  SharedReading reading;
  if (ranks != nullptr) {
    if (!device_->info().is_host) {
      staging_ = Require(device_->Allocate(HostExchange::kStagingBytes));
    }
    exchange_ = std::make_unique<HostExchange>(&ranks->comm(), device_.get(), staging_.data(),
                                               staging_.bytes());
    reading = {exchange_.get(), absl::MakeConstSpan(ranks->neighbours())};
  }
  Env* env = Env::Default();
  const std::string folder = GoldenModelPath(options.model);
  ModelSpec spec = Require(ReadModelConfig(env, folder));
  const ShardedModel model = Require(ShardedModel::Open(env, folder));
  std::vector<std::string> warnings;
  const StorageOptions& storage = options.record.storage;
  Require(CheckCheckpoint(model, storage.mode, storage.quant, &spec, &warnings));
  PlanLimits limits{.memory_bytes = options.memory_limit,
                    .memory_source = "the test",
                    .recompute = options.recompute,
                    .paging = options.paging,
                    .may_offload = options.may_offload};
  if (options.random_layers > 0) {
    spec.layers = options.random_layers;
    spec.window.resize(spec.layers);
  } else {
    limits.loading_bytes = LoadingBytes(&model, spec, storage, *device_, false);
  }
  std::vector<std::string> selection_warnings;
  options.record.kernels =
      Require(SelectKernels(Record(spec, options.record, *device_).program.Ops(), options.kernels,
                            {}, device_.get(), &selection_warnings));
  EXPECT_THAT(selection_warnings, testing::IsEmpty());
  const MachineRates rates{.matmul_flops = 1e9, .memory_bytes = 1e9};
  plan_ = Require(MakePlan(spec, options.record, *device_, rates, limits));
  execution_ =
      Require(Execution::Create(plan_, device_.get(), ranks == nullptr ? nullptr : &ranks->comm()));
  if (options.random_layers > 0) {
    Require(InitializeWeights(options.seed, execution_.get()));
    return;
  }
  Require(LoadWeights(model, execution_.get(), {}, reading));
  if (!options.adapter.empty()) {
    Require(LoadAdapter(env, GoldenModelPath(options.adapter), execution_.get()));
    return;
  }
  for (size_t course = 0; course < plan_.run.storage.adapters.size(); ++course) {
    StartAdapter(int64_t(course), options.seed + course);
  }
}

void ModelRun::StartAdapter(int64_t course, uint64_t seed) {
  const Storage& s = storage();
  std::vector<float> values;
  for (size_t i = 0; i < s.adapters[course].size(); ++i) {
    const AdaptedModule& module = s.options.lora[course].modules[i];
    values.resize(module.rank * module.in);
    InitializeLoraA(seed, module, absl::MakeSpan(values));
    Require(WriteTrained(execution_.get(), s.adapters[course][i].a_parameter, values));
    values.assign(module.out * module.rank, 0.0f);
    Require(WriteTrained(execution_.get(), s.adapters[course][i].b_parameter, values));
  }
}

void ModelRun::Read(kernels::ConstTensor view, void* to) {
  Require(execution_->Read(view, to, view.Extent()));
}

std::vector<float> ModelRun::Parameter(const std::string& name, kernels::Tensor flat) {
  const std::vector<engine::Parameter>& parameters = storage().space.parameters();
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (parameters[i].name == name) return Values<float>(storage().space.View(int64_t(i), flat));
  }
  ADD_FAILURE() << "no parameter " << name;
  return {};
}

std::string ModelRun::StateBytes() {
  std::string bytes;
  const Storage& s = storage();
  const auto append = [&](const kernels::Tensor& view) {
    if (!view) return;
    const std::vector<uint8_t> part = Values<uint8_t>(view);
    bytes.append(part.begin(), part.end());
  };
  append(s.compute);
  append(s.gradient);
  for (const StateField field : kStateFields) {
    for (const StateWindow& window : s.windows) append(window.Get(field));
  }
  return bytes;
}

RecordOptions TrainingOptions(const std::string& model, const Dataset& data, int64_t rows,
                              int64_t micro_batches) {
  RecordOptions options;
  const ModelSpec spec = Require(ReadModelConfig(Env::Default(), GoldenModelPath(model)));
  options.storage.lora = {AllLinears(spec, 4, 8, false)};
  options.storage.rope_positions = data.report.longest;
  options.storage.pending_gradients = PendingGradients(micro_batches);
  options.adam.max_grad_norm = 0.3f;
  options.train = Batcher(&data, {.rows_per_micro_batch = rows}).capacity();
  return options;
}

RecordOptions TrainingOptions(const RunKind& kind, const Dataset& data, int64_t rows,
                              int64_t micro_batches) {
  RecordOptions options = TrainingOptions(kind.model, data, rows, micro_batches);
  options.storage.mode = kind.mode;
  if (kind.mode == proto::Mode::FULL) options.storage.lora.clear();
  options.storage.compute = kind.compute;
  options.storage.eight_bit_states = kind.eight_bit_states;
  return options;
}

std::vector<StepResult> RunSteps(ModelRun* run, const Dataset& data, int64_t rows,
                                 int64_t micro_batches, int64_t steps, int64_t first_step,
                                 Ranks* ranks) {
  const Batcher batcher(
      &data,
      {.rows_per_micro_batch = rows, .micro_batches_per_step = micro_batches, .shuffle = false});
  const int64_t mine = micro_batches / (ranks == nullptr ? 1 : ranks->size());
  const bool tree = run->storage().options.pending_gradients > 0 || mine == 1;
  TrainStep step(&run->execution(), {.micro_batches = mine, .tree_sum = tree},
                 ranks == nullptr ? nullptr : &ranks->comm());
  std::vector<StepResult> results;
  for (int64_t i = first_step; i < first_step + steps; ++i) {
    const std::vector<MicroBatch> batch = batcher.Step(i);
    results.push_back(Require(step.Run(
        {.seed = 3,
         .step = i,
         .updates = i,
         .learning_rate = 1e-3,
         .trained_tokens = Batcher::TrainedTokens(batch)},
        [&](int64_t j) -> absl::StatusOr<MicroBatchInputs> { return batch[j].inputs(); })));
  }
  return results;
}

}  // namespace qlora::engine
