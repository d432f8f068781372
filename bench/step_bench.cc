// Times whole training steps of a model of which only config.json is there: weights, tokens and
// adapters are made up, memory and arithmetic are those of a real run.
//
//   step_bench --model=FOLDER [--device=cuda|cpu] [--mode=QLORA|LORA|FULL] [--rank=16]
//              [--tokens=2048] [--rows=2] [--accumulation=4] [--steps=5] [--memory_limit=BYTES]
//              [--recompute=AUTO|NONE|FULL] [--paged=1] [--json=FILE]
//
// Prints the plan's table, then one line: tokens per second (median step) and its share of the
// speed of light, that is of the dense bf16 matmul rate measured in the same process. With --json
// the same as one JSON object, appended, and what the card's driver says is taken of its memory
// after the last step. Nothing is given back or taken between steps: that is also the peak.
// --paged=1 lets optimizer states leave the card where the plan needs their room.
// Exit codes: 64 a wrong flag, 69 no usable GPU, 1 anything else.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/gpu_limits.h"
#include "engine/io/env.h"
#include "engine/lora/targets.h"
#include "engine/model/families.h"
#include "engine/model/load_weights.h"
#include "engine/plan/host_memory.h"
#include "engine/plan/plan.h"
#include "engine/plan/useful_flops.h"
#include "engine/step/execution.h"
#include "engine/step/step.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/cuda/cuda_device.h"
#include "nlohmann/json.hpp"

namespace qlora::engine {
namespace {

class Options {
 public:
  Options(int argc, char** argv) {
    for (int i = 1; i < argc; ++i) {
      const std::string argument = argv[i];
      const size_t equals = argument.find('=');
      if (argument.rfind("--", 0) != 0 || equals == std::string::npos) {
        std::cerr << "step_bench: what is " << argument << "? Options are --name=value\n";
        std::exit(64);
      }
      values_[argument.substr(2, equals - 2)] = argument.substr(equals + 1);
    }
  }
  std::string Text(const std::string& name, const std::string& fallback) const {
    const auto it = values_.find(name);
    return it == values_.end() ? fallback : it->second;
  }
  int64_t Number(const std::string& name, int64_t fallback) const {
    int64_t value = fallback;
    const auto it = values_.find(name);
    if (it != values_.end() && (!absl::SimpleAtoi(it->second, &value) || value <= 0)) {
      std::cerr << "step_bench: --" << name << " wants a positive number\n";
      std::exit(64);
    }
    return value;
  }

 private:
  std::map<std::string, std::string> values_;
};

template <class T>
T Require(absl::StatusOr<T> value) {
  if (value.ok()) return *std::move(value);
  std::cerr << "step_bench: " << value.status().message() << "\n";
  std::exit(1);
}
std::unique_ptr<kernels::Device> CreateDevice(const std::string& kind) {
  if (kind == "cpu") return Require(kernels::cpu::CreateCpuDevice({}));
  if (kind != "cuda") {
    std::cerr << "step_bench: --device=" << kind << "; allowed: cpu, cuda\n";
    std::exit(64);
  }
  auto device = kernels::cuda::CreateCudaDevice({});
  if (absl::IsNotFound(device.status())) {
    std::cerr << "step_bench: " << device.status().message() << "\n";
    std::exit(69);
  }
  return Require(std::move(device));
}
void Require(const absl::Status& status) {
  if (status.ok()) return;
  std::cerr << "step_bench: " << status.message() << "\n";
  std::exit(1);
}

// Fills a persistent buffer by repeating a few megabytes: what the numbers are does not matter to
// the time, that they are finite does.
void Fill(Execution* execution, const kernels::Tensor& view, const std::vector<uint8_t>& pattern) {
  if (!view) return;
  const int64_t bytes = view.Extent();
  for (int64_t at = 0; at < bytes; at += int64_t(pattern.size())) {
    kernels::Tensor part = view;
    part.data = static_cast<uint8_t*>(view.data) + at;
    Require(execution->Write(part, pattern.data(), std::min(bytes - at, int64_t(pattern.size()))));
  }
}

constexpr size_t kPatternBytes = size_t{4} << 20;

template <class T>
std::vector<uint8_t> Pattern(T (*value)(uint32_t random)) {
  std::vector<uint8_t> bytes(kPatternBytes);
  uint32_t random = 1;
  for (size_t i = 0; i < bytes.size(); i += sizeof(T)) {
    random = random * 1664525u + 1013904223u;
    const T v = value(random >> 8);
    std::memcpy(bytes.data() + i, &v, sizeof(T));
  }
  return bytes;
}

void FillWeights(Execution* execution) {
  const Storage& storage = execution->plan().run.storage;
  const auto codes = Pattern<uint8_t>([](uint32_t r) { return uint8_t(r); });
  const auto small = Pattern<uint16_t>(
      [](uint32_t r) { return quant::Bf16FromF32((float(r & 0xffff) / 65536.0f - 0.5f) * 0.06f); });
  const auto scales = Pattern<float>([](uint32_t) { return 0.01f; });
  const auto ones = Pattern<uint16_t>([](uint32_t) { return quant::Bf16FromF32(1.0f); });
  for (const WeightSlot& slot : storage.weights) {
    Fill(execution, slot.quantized.codes, codes);
    Fill(execution, slot.quantized.absmax,
         slot.quantized.absmax.dtype == kernels::DType::kU8 ? codes : scales);
    Fill(execution, slot.quantized.nested_absmax, scales);
    Fill(execution, slot.quantized.offset, scales);
    Fill(execution, slot.frozen, KindOf(slot.row.role) == WeightKind::kNorm ? ones : small);
  }
  uint32_t random = 7;
  const std::vector<Parameter>& parameters = storage.space.parameters();
  for (size_t i = 0; i < parameters.size(); ++i) {
    std::vector<float> values(parameters[i].rows * parameters[i].cols);
    for (float& x : values) {
      random = random * 1664525u + 1013904223u;
      x = (float(random >> 8) / float(1 << 24) - 0.5f) * 0.02f;
    }
    Require(WriteTrained(execution, int64_t(i), values));
  }
}

int Main(int argc, char** argv) {
  const Options options(argc, argv);
  Env* env = Env::Default();
  const std::string folder = options.Text("model", "");
  const ModelSpec spec = Require(ReadModelConfig(env, folder));
  const std::unique_ptr<kernels::Device> device = CreateDevice(options.Text("device", "cuda"));
  const int64_t tokens = options.Number("tokens", 2048), rows = options.Number("rows", 2);
  const int64_t accumulation = options.Number("accumulation", 4);
  const std::string mode = options.Text("mode", "QLORA");

  RecordOptions record;
  if (!proto::Mode::Value_Parse(mode, &record.storage.mode))
    Require(absl::InvalidArgumentError(mode));
  if (record.storage.mode != proto::Mode::FULL) {
    proto::Lora lora;
    lora.set_r(int32_t(options.Number("rank", 16)));
    lora.set_lora_alpha(32);
    lora.add_target_modules("all-linear");
    record.storage.lora = {Require(ResolveLoraTargets(lora, WeightRows(spec)))};
  }
  record.storage.rope_positions = tokens;
  record.adam.max_grad_norm = 0.3f;
  // One document of `tokens` tokens a row, all of them trained but the last.
  record.train = {.tokens = rows * tokens, .documents = rows, .trained_rows = rows * (tokens - 1)};

  const MachineRates rates = Require(MeasureRates(*device, kernels::DType::kBf16));
  PlanLimits limits{.memory_bytes = options.Number("memory_limit", device->info().memory_bytes),
                    .memory_source = "the device's free memory",
                    .other = {}};
  const std::string recompute = options.Text("recompute", "AUTO");
  if (!proto::Recompute::Value_Parse(recompute, &limits.recompute)) {
    Require(absl::InvalidArgumentError(recompute));
  }
  if (!device->info().is_host) {
    limits.paging.allowed = options.Number("paged", 0) > 0;
    limits.may_offload = true;
    limits.host_bytes = AvailableHostMemory() - ResidentHostMemory();
  }
  const Plan plan = Require(MakePlan(spec, record, *device, rates, limits));
  std::cout << PlanTable(plan, limits) << std::flush;
  const std::unique_ptr<Execution> execution = Require(Execution::Create(plan, device.get()));
  Require(FillTables(execution.get()));
  FillWeights(execution.get());

  std::vector<int32_t> ids(rows * tokens), positions(rows * tokens), trained, targets;
  std::vector<DocumentBounds> documents;
  for (int64_t r = 0; r < rows; ++r) {
    const int32_t begin = int32_t(r * tokens);
    documents.push_back({begin, int32_t(tokens), begin, int32_t(tokens)});
    for (int64_t t = 0; t < tokens; ++t) {
      ids[begin + t] = int32_t((t * 7919 + r * 104729) % spec.vocab);
      positions[begin + t] = int32_t(t);
      if (t + 1 == tokens) continue;
      trained.push_back(int32_t(begin + t));
      targets.push_back(int32_t(((t + 1) * 7919 + r * 104729) % spec.vocab));
    }
  }
  const MicroBatchInputs batch{ids, positions, documents, trained, targets};
  TrainStep step(execution.get(), {.micro_batches = accumulation, .tree_sum = false});
  std::vector<double> seconds;
  double loss = 0;
  const int64_t steps = options.Number("steps", 5);
  for (int64_t i = 0; i < steps + 1; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    const StepResult result =
        Require(step.Run({.seed = 1,
                          .step = i,
                          .updates = i,
                          .learning_rate = 1e-4,
                          .trained_tokens = accumulation * int64_t(trained.size())},
                         [&](int64_t) -> absl::StatusOr<MicroBatchInputs> { return batch; }));
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
    if (i > 0) seconds.push_back(elapsed.count());  // the first warms caches and clocks up
    loss = result.loss_sum / double(result.trained_tokens);
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  const int64_t step_tokens = accumulation * rows * tokens;
  const double flops =
      UsefulFlops(spec, record.storage.mode == proto::Mode::FULL,
                  record.storage.lora.empty() ? 0 : record.storage.lora[0].ParameterCount(),
                  step_tokens, double(accumulation * rows) * 0.5 * tokens * (tokens + 1.0));
  const double share = flops / rates.matmul_flops / median;
  std::cout << absl::StrFormat(
      "%s %s: %.0f tokens/s, %.1f %% of the speed of light (%.1f TFLOP/s dense), %.4g s a step, "
      "loss %.4f, recompute: %s\n",
      folder, mode, double(step_tokens) / median, 100 * share, rates.matmul_flops / 1e12, median,
      loss, Describe(plan.recompute, spec.layers));
  const std::string json = options.Text("json", "");
  if (json.empty()) return 0;
  nlohmann::json line = {{"model", folder},
                         {"device", device->info().name},
                         {"mode", mode},
                         {"rank", options.Number("rank", 16)},
                         {"tokens", tokens},
                         {"rows", rows},
                         {"accumulation", accumulation},
                         {"tokens_per_second", double(step_tokens) / median},
                         {"share_of_light", share},
                         {"useful_tflops", flops / median / 1e12},
                         {"dense_tflops", rates.matmul_flops / 1e12},
                         {"planned_bytes", plan.total_bytes},
                         {"host_bytes", plan.HostBytes()},
                         {"recompute", Describe(plan.recompute, spec.layers)}};
  if (!device->info().is_host) line["device_bytes"] = Require(bench::GpuBytesInUse());
  std::ofstream(json, std::ios::app) << line.dump() << "\n";
  return 0;
}

}  // namespace
}  // namespace qlora::engine

int main(int argc, char** argv) { return qlora::engine::Main(argc, argv); }
