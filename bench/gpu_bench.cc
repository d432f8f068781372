#include "bench/gpu_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>
#include <variant>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"

namespace qlora::bench {

using kernels::LinearVariant;
using kernels::Op;
using kernels::Tensor;

namespace {

constexpr int64_t kCachesARotation = 4;
constexpr int64_t kMaxCopies = 64;
// Between two waits on the host: what waiting costs is then nothing, and with
// --benchmark_min_time=0.05 one batch is enough: operands are made once.
constexpr double kSecondsABatch = 0.1;
constexpr int64_t kMaxRunsABatch = 4096;

// With as much of its `tail` as the variant wants, as the recorder does it.
void SetVariant(Op* op, LinearVariant variant, const kernels::Device& device) {
  std::visit(
      [&](auto& o) {
        if constexpr (requires { o.variant; }) {
          o.variant = variant;
          o.tail = kernels::TailWithin(o.tail, device.TailColumns(o));
        }
      },
      *op);
}

// How many runs of a piece make a batch.
absl::StatusOr<int64_t> RunsOfABatch(RotatedOp* rotated) {
  absl::StatusOr<double> first = rotated->Run(1);  // loads code, warms clocks
  if (!first.ok()) return first.status();
  const absl::StatusOr<double> second = rotated->Run(1);
  if (!second.ok()) return second.status();
  return std::clamp<int64_t>(std::llround(kSecondsABatch / *second), 1, kMaxRunsABatch);
}

void Measure(benchmark::State& state, kernels::Device* device, const GpuMarks& marks,
             const GpuCase& c, LinearVariant variant) {
  const absl::StatusOr<std::unique_ptr<RotatedOp>> rotated =
      RotatedOp::Create(device, c, variant, kCachesARotation * marks.card.l2_bytes);
  if (!rotated.ok()) return state.SkipWithError(std::string(rotated.status().message()).c_str());
  const absl::StatusOr<int64_t> runs = RunsOfABatch(rotated->get());
  if (!runs.ok()) return state.SkipWithError(std::string(runs.status().message()).c_str());
  while (state.KeepRunningBatch(*runs * (*rotated)->copies())) {
    const absl::StatusOr<double> seconds = (*rotated)->Run(*runs);
    if (seconds.ok()) continue;
    return state.SkipWithError(std::string(seconds.status().message()).c_str());
  }
  using benchmark::Counter;
  const double flops = kernels::FlopsOf((*rotated)->op());
  const double bytes = kernels::BytesOf((*rotated)->op());
  state.counters["TFLOP/s"] = Counter(flops / 1e12, Counter::kIsIterationInvariantRate);
  state.counters["GB/s"] = Counter(bytes / 1e9, Counter::kIsIterationInvariantRate);
  state.counters["limit"] = Counter(
      std::max(flops / marks.product_flops_per_second, bytes / marks.card.copy_bytes_per_second),
      Counter::kIsIterationInvariantRate);
  state.counters["copies"] = double((*rotated)->copies());
}

}  // namespace

void SetWorkspace(Op* op, void* data, int64_t bytes) {
  std::visit(
      [&](auto& o) {
        if constexpr (requires { o.workspace; }) {
          if (bytes > 0) o.workspace = Tensor{data, kernels::DType::kU8, 1, bytes, bytes};
        }
      },
      *op);
}

absl::StatusOr<std::unique_ptr<RotatedOp>> RotatedOp::Create(kernels::Device* device,
                                                             const GpuCase& c,
                                                             LinearVariant variant,
                                                             int64_t rotation_bytes) {
  std::unique_ptr<RotatedOp> rotated(new RotatedOp(device));
  std::vector<Op>& ops = rotated->ops_;
  int64_t copies = 1, workspace = 0;
  for (int64_t i = 0; i < copies; ++i) {
    ops.push_back(c.make(rotated->operands_));
    if (!rotated->operands_.status().ok()) return rotated->operands_.status();
    SetVariant(&ops.back(), variant, *device);
    workspace = std::max(workspace, device->WorkspaceBytes(ops.back()));
    if (i > 0) continue;
    const double wanted = std::ceil(double(rotation_bytes) / kernels::BytesOf(ops.front()));
    copies = int64_t(std::clamp(wanted, 1.0, double(kMaxCopies)));
  }
  absl::StatusOr<kernels::Buffer> buffer = device->Allocate(workspace);
  if (!buffer.ok()) return buffer.status();
  rotated->workspace_ = *std::move(buffer);
  for (Op& op : ops) {
    SetWorkspace(&op, rotated->workspace_.data(), device->WorkspaceBytes(op));
  }
  absl::StatusOr<std::unique_ptr<kernels::Piece>> piece = device->Prepare(ops);
  if (!piece.ok()) return piece.status();
  rotated->piece_ = *std::move(piece);
  return rotated;
}

absl::StatusOr<double> RotatedOp::Run(int64_t runs) {
  const auto begin = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < runs; ++i) {
    if (absl::Status s = piece_->Run(); !s.ok()) return s;
  }
  if (absl::Status s = device_->Synchronize(); !s.ok()) return s;
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

std::vector<LinearVariant> VariantsOf(const kernels::Device& device, const GpuCase& c) {
  GpuOperands shapes(nullptr);
  return device.Variants(c.make(shapes));
}

absl::StatusOr<GpuMarks> MeasureMarks(kernels::Device* device, const MarkSizes& sizes) {
  absl::StatusOr<GpuLimits> card = MeasureGpu(sizes.copy_bytes);
  if (!card.ok()) return card.status();
  GpuMarks marks{.card = *card};
  const GpuCase product = DenseProduct(sizes.product_rows, sizes.product_in, sizes.product_out);
  for (const LinearVariant variant : VariantsOf(*device, product)) {
    const auto rotated =
        RotatedOp::Create(device, product, variant, kCachesARotation * card->l2_bytes);
    if (!rotated.ok()) return rotated.status();
    const absl::StatusOr<int64_t> runs = RunsOfABatch(rotated->get());
    if (!runs.ok()) return runs.status();
    for (int i = 0; i < 5; ++i) {  // the best: a disturbance only ever slows one down
      const absl::StatusOr<double> seconds = (*rotated)->Run(*runs);
      if (!seconds.ok()) return seconds.status();
      const double rate =
          kernels::FlopsOf((*rotated)->op()) * double(*runs * (*rotated)->copies()) / *seconds;
      if (rate <= marks.product_flops_per_second) continue;
      marks.product_flops_per_second = rate;
      marks.product_variant = variant;
    }
  }
  return marks;
}

void RegisterGpu(kernels::Device* device, const GpuMarks& marks,
                 const std::vector<GpuCase>& cases) {
  for (const GpuCase& c : cases) {
    const std::vector<LinearVariant> variants = VariantsOf(*device, c);
    for (const LinearVariant variant : variants) {
      const std::string name =
          variants.size() == 1
              ? c.name
              : absl::StrCat(c.name, "/", absl::AsciiStrToLower(kernels::NameOf(variant)));
      benchmark::RegisterBenchmark(name.c_str(),
                                   [device, &marks, c, variant](benchmark::State& state) {
                                     Measure(state, device, marks, c, variant);
                                   })
          ->UseRealTime()
          ->Unit(benchmark::kMicrosecond);
    }
  }
}

}  // namespace qlora::bench
