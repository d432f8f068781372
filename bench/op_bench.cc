// Speed of the ops.
//
//   op_bench [--device=cpu|cuda] [Google Benchmark's own flags]
//
// Prints GB/s and GFLOP/s (on a GPU TFLOP/s) as the op's own Bytes() and Flops() count them, and
// `limit`: the larger of their shares of what the machine was measured to do at the start.
// On the CPU the cases come from the makers of the tests' cases; QLORA_BENCH_THREADS and
// QLORA_BENCH_ISA (portable, avx2, avx512, avx512_bf16) choose the device. On a GPU they are those
// of gpu_cases.h, the marks the driver's device-to-device copy and the fastest dense bf16 product.
// Exit codes: 64 a wrong flag, 69 no usable GPU, 1 anything else that fails before the first case.

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iostream>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "bench/gpu_bench.h"
#include "bench/machine_limits.h"
#include "benchmark/benchmark.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/kernels/op_cases.h"
#include "tests/support/op_harness.h"

namespace qlora::bench {
namespace {

using namespace kernels;          // NOLINT: the ops
using namespace kernels::optest;  // NOLINT: their makers

constexpr int kWrongFlag = 64, kNoGpu = 69;  // as in sysexits.h

struct Setup {
  std::unique_ptr<Device> device;
  MachineLimits limits;
};

template <class OpType>
void Measure(benchmark::State& state, const Setup& setup,
             const std::function<OpCase<OpType>()>& make) {
  const OpCase<OpType> c = make();
  const Op op = c.op;
  auto run = DeviceRun::Create(*setup.device, *c.memory, {op});
  if (!run.ok() || !(*run)->Upload().ok()) {
    state.SkipWithError("the device refused the case");
    return;
  }
  for (auto unused : state) {
    if (!(*run)->piece().Run().ok() || !setup.device->Synchronize().ok())
      state.SkipWithError("run failed");
  }
  using Counter = benchmark::Counter;
  const double flops = FlopsOf(op), bytes = BytesOf(op);
  state.counters["GFLOP/s"] = Counter(flops / 1e9, Counter::kIsIterationInvariantRate);
  state.counters["GB/s"] = Counter(bytes / 1e9, Counter::kIsIterationInvariantRate);
  state.counters["limit"] = Counter(
      std::max(flops / setup.limits.flops_per_second, bytes / setup.limits.read_bytes_per_second),
      Counter::kIsIterationInvariantRate);
}

template <class OpType>
void Register(const Setup& setup, const std::string& name, std::function<OpCase<OpType>()> make) {
  benchmark::RegisterBenchmark(
      name.c_str(),
      [&setup, make](benchmark::State& state) { Measure<OpType>(state, setup, make); })
      ->UseRealTime()
      ->Unit(benchmark::kMicrosecond);
}

LinearParams Linear(int64_t rows, int64_t in, int64_t out, LinearBase::Kind base, int64_t rank) {
  LinearParams p;
  p.rows = rows;
  p.in = in;
  p.out = out;
  p.base = base;
  if (rank > 0) p.adapters.push_back({.rank = rank});
  return p;
}

void RegisterLinear(const Setup& setup) {
  constexpr auto kNf4 = LinearBase::Kind::kQuantized, kDense = LinearBase::Kind::kDense;
  const auto Forward = [&](const std::string& name, const LinearParams& p) {
    Register<LinearForward>(setup, "linear_forward/" + name, [p] { return MakeLinearForward(p); });
  };
  for (int64_t rows : {1, 8, 64, 512, 2048}) {
    Forward(absl::StrCat("nf4/M", rows, "/4096x4096"), Linear(rows, 4096, 4096, kNf4, 0));
  }
  Forward("bf16/M1/4096x4096", Linear(1, 4096, 4096, kDense, 0));
  Forward("bf16/M512/4096x4096", Linear(512, 4096, 4096, kDense, 0));
  Forward("nf4_r16/M512/4096x4096", Linear(512, 4096, 4096, kNf4, 16));
  LinearParams dropped = Linear(512, 4096, 4096, kNf4, 16);
  dropped.adapters[0].dropout = 0.05f;
  Forward("nf4_r16_dropout/M512/4096x4096", dropped);
  for (int64_t size : {64, 256, 512}) {
    Forward(absl::StrCat("nf4_r8/M512/", size, "x", size), Linear(512, size, size, kNf4, 8));
  }
  for (const LinearParams& p :
       {Linear(512, 4096, 4096, kNf4, 16), Linear(512, 256, 256, kNf4, 8)}) {
    const std::string name = absl::StrCat("nf4_r", p.adapters[0].rank, "/M512/", p.in, "x", p.out);
    Register<LinearBackwardInput>(setup, "linear_backward_input/" + name,
                                  [p] { return MakeLinearBackwardInput(p); });
    Register<LinearBackwardAdapter>(setup, "linear_backward_adapter/" + name,
                                    [p] { return MakeLinearBackwardAdapter(p); });
  }
  const LinearParams trained = Linear(512, 1024, 1024, kDense, 0);
  Register<LinearBackwardWeight>(setup, "linear_backward_weight/M512/1024x1024",
                                 [trained] { return MakeLinearBackwardWeight(trained); });
}

void RegisterQuantize(const Setup& setup) {
  QuantizeParams p;
  p.rows = p.cols = 4096;
  p.dtype = DType::kBf16;
  Register<Quantize>(setup, "quantize/nf4_dq/bf16/4096x4096", [p] { return MakeQuantize(p); });
  Register<Dequantize>(setup, "dequantize/nf4_dq/bf16/4096x4096",
                       [p] { return MakeDequantize(p); });
}

// The test case of each op that does most work, so that no op is without a figure.
template <class OpType>
void RegisterLargestCase(const Setup& setup) {
  Register<OpType>(setup, absl::StrCat(OpType::kName, "/largest_case"), [] {
    OpCase<OpType> largest = OpCases<OpType>::Make(0);
    for (int i = 1; i < OpCases<OpType>::Count(); ++i) {
      OpCase<OpType> c = OpCases<OpType>::Make(i);
      if (Flops(c.op) + Bytes(c.op) > Flops(largest.op) + Bytes(largest.op)) largest = std::move(c);
    }
    return largest;
  });
}

int Fail(int code, const absl::Status& status) {
  std::cerr << "op_bench: " << status.message() << "\n";
  return code;
}

int RunCpu() {
  cpu::CpuOptions options;
  const char* threads = std::getenv("QLORA_BENCH_THREADS");
  options.threads =
      threads != nullptr ? std::atoi(threads) : int(std::thread::hardware_concurrency());
  if (const char* isa = std::getenv("QLORA_BENCH_ISA")) {
    for (cpu::Isa available : cpu::AvailableIsas()) {
      if (std::strcmp(cpu::NameOf(available), isa) == 0) options.isa = available;
    }
  }
  auto device = cpu::CreateCpuDevice(options);
  if (!device.ok()) return Fail(1, device.status());
  const Setup setup = {*std::move(device), MeasureLimits(options.isa, options.threads)};
  benchmark::AddCustomContext("cpu", CpuModel());
  benchmark::AddCustomContext("device", setup.device->info().name);
  benchmark::AddCustomContext("limit_gflops", absl::StrCat(setup.limits.flops_per_second / 1e9));
  benchmark::AddCustomContext("limit_gbytes",
                              absl::StrCat(setup.limits.read_bytes_per_second / 1e9));
  RegisterLinear(setup);
  RegisterQuantize(setup);
#define QLORA_REGISTER(OpType) RegisterLargestCase<OpType>(setup);
  QLORA_FOR_EACH_OP(QLORA_REGISTER)
#undef QLORA_REGISTER
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

int RunGpu() {
  const auto device = cuda::CreateCudaDevice({});
  if (absl::IsNotFound(device.status())) return Fail(kNoGpu, device.status());
  if (!device.ok()) return Fail(1, device.status());
  const absl::StatusOr<GpuMarks> marks = MeasureMarks(device->get(), {});
  if (!marks.ok()) return Fail(1, marks.status());
  benchmark::AddCustomContext("device", (*device)->info().name);
  benchmark::AddCustomContext("limit_tflops", absl::StrCat(marks->product_flops_per_second / 1e12));
  benchmark::AddCustomContext("limit_tflops_by", kernels::NameOf(marks->product_variant));
  benchmark::AddCustomContext("limit_gbytes",
                              absl::StrCat(marks->card.copy_bytes_per_second / 1e9));
  RegisterGpu(device->get(), *marks, GpuCases(TrainingShapes()));
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

int Main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  std::string device = "cpu";
  constexpr absl::string_view kDevice = "--device=";
  if (argc > 1 && absl::string_view(argv[1]).substr(0, kDevice.size()) == kDevice) {
    device = argv[1] + kDevice.size();
    argv[1] = argv[0];
    ++argv, --argc;
  }
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return kWrongFlag;
  if (device != "cpu" && device != "cuda") {
    return Fail(kWrongFlag, absl::InvalidArgumentError(
                                absl::StrCat("--device=", device, "; allowed: cpu, cuda")));
  }
  const int code = device == "cuda" ? RunGpu() : RunCpu();
  benchmark::Shutdown();
  return code;
}

}  // namespace
}  // namespace qlora::bench

int main(int argc, char** argv) { return qlora::bench::Main(argc, argv); }
