#include "engine/plan/rates.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>
#include <vector>

#include "quant/float_formats.h"

namespace qlora::engine {
namespace {

using kernels::Buffer;
using kernels::Op;
using kernels::Tensor;

constexpr int kTries = 5;
// Beside so long a time a disturbance is small: one try more would tell little and cost much.
constexpr double kEnoughSeconds = 0.2;

// What is timed: long enough to hide what starting it costs, and little beside what a run needs.
struct Sizes {
  int64_t product_rows, product_size;  // rows; in and out features
  int64_t stream_elements;             // fp32, as many again for the pair: beyond the caches
};
constexpr Sizes kHostSizes = {512, 1024, int64_t{8} << 20};
constexpr Sizes kGpuSizes = {4096, 4096, int64_t{64} << 20};

double SecondsOf(absl::FunctionRef<absl::Status()> run, absl::Status* status) {
  double best = 1e30, all = 0;
  for (int i = 0; i < kTries && all < kEnoughSeconds; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    if (*status = run(); !status->ok()) return 0;
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    best = std::min(best, seconds.count());
    all += seconds.count();
  }
  return best;
}

absl::StatusOr<double> RateOf(kernels::Device& device, const Op& op, double amount) {
  std::vector<Op> ops = {op};
  absl::StatusOr<std::unique_ptr<kernels::Piece>> piece = device.Prepare(std::move(ops));
  if (!piece.ok()) return piece.status();
  absl::Status status;
  const double seconds = SecondsOf(
      [&] {
        const absl::Status s = (*piece)->Run();
        return s.ok() ? device.Synchronize() : s;
      },
      &status);
  if (!status.ok()) return status;
  return amount / seconds;
}

// Numbers as a product meets them: over zeros a GPU draws less power and runs faster, 13 % on an
// H200.
absl::Status FillRandom(kernels::Device& device, uint8_t* to, int64_t bytes, kernels::DType dtype) {
  std::vector<uint8_t> pattern(size_t{1} << 20);
  uint32_t random = 1;
  for (size_t i = 0; i < pattern.size(); i += kernels::SizeOf(dtype)) {
    random = random * 1664525u + 1013904223u;
    const float value = float(random >> 8) / float(1 << 24) - 0.5f;
    const uint16_t narrow = quant::Bf16FromF32(value);
    if (dtype == kernels::DType::kBf16) {
      std::memcpy(pattern.data() + i, &narrow, 2);
    } else {
      std::memcpy(pattern.data() + i, &value, 4);
    }
  }
  for (int64_t done = 0; done < bytes; done += int64_t(pattern.size())) {
    const int64_t count = std::min<int64_t>(bytes - done, int64_t(pattern.size()));
    if (absl::Status s = device.CopyIn(to + done, pattern.data(), count); !s.ok()) return s;
  }
  return absl::OkStatus();
}

// Of copies from ordinary host memory.
absl::StatusOr<double> LinkRate(kernels::Device& device) {
  constexpr int64_t kBytes = int64_t{64} << 20;
  absl::StatusOr<Buffer> memory = device.Allocate(kBytes);
  if (!memory.ok()) return memory.status();
  const std::vector<uint8_t> from(kBytes, 1);
  absl::Status status;
  const double seconds = SecondsOf(
      [&] {
        const absl::Status s = device.CopyIn(memory->data(), from.data(), kBytes);
        return s.ok() ? device.Synchronize() : s;
      },
      &status);
  if (!status.ok()) return status;
  return double(kBytes) / seconds;
}

}  // namespace

absl::StatusOr<MachineRates> MeasureRates(kernels::Device& device, kernels::DType compute) {
  MachineRates rates;
  const Sizes& sizes = device.info().is_host ? kHostSizes : kGpuSizes;
  {
    kernels::LinearForward op;
    op.base.kind = kernels::LinearBase::Kind::kDense;
    op.base.out_features = op.base.in_features = sizes.product_size;
    const int64_t workspace = [&] {
      op.x = {nullptr, compute, sizes.product_rows, sizes.product_size, sizes.product_size};
      op.y = {nullptr, compute, sizes.product_rows, sizes.product_size, sizes.product_size};
      op.base.dense = {nullptr, compute, sizes.product_size, sizes.product_size,
                       sizes.product_size};
      op.variant = device.Variants(op).front();
      return device.WorkspaceBytes(op);
    }();
    const int64_t x_bytes = op.y.Extent(), w_bytes = op.base.dense.Extent();
    absl::StatusOr<Buffer> memory = device.Allocate(2 * x_bytes + w_bytes + workspace);
    if (!memory.ok()) return memory.status();
    uint8_t* at = static_cast<uint8_t*>(memory->data());
    op.x.data = at;
    op.y.data = at + x_bytes;
    op.base.dense.data = at + 2 * x_bytes;
    for (const auto& [data, bytes] : {std::pair{at, x_bytes}, {at + 2 * x_bytes, w_bytes}}) {
      if (absl::Status s = FillRandom(device, data, bytes, compute); !s.ok()) return s;
    }
    op.workspace = {at + 2 * x_bytes + w_bytes, kernels::DType::kU8, 1, workspace, workspace};
    absl::StatusOr<double> rate = RateOf(device, op, Flops(op));
    if (!rate.ok()) return rate.status();
    rates.matmul_flops = *rate;
  }
  {
    absl::StatusOr<Buffer> memory = device.Allocate(2 * sizes.stream_elements * 4);
    if (!memory.ok()) return memory.status();
    uint8_t* at = static_cast<uint8_t*>(memory->data());
    const Tensor from{at, kernels::DType::kF32, 1, sizes.stream_elements, sizes.stream_elements};
    Tensor into = from;
    into.data = at + sizes.stream_elements * 4;
    // Memory that was never written is one page of zeros: reading it would measure the cache.
    if (absl::Status s = device.RunOnce({kernels::Zero{from}}); !s.ok()) return s;
    const kernels::AddGradient op{.from = from, .into = into};
    absl::StatusOr<double> rate = RateOf(device, op, Bytes(op));
    if (!rate.ok()) return rate.status();
    rates.memory_bytes = *rate;
  }
  if (!device.info().is_host) {
    absl::StatusOr<double> rate = LinkRate(device);
    if (!rate.ok()) return rate.status();
    rates.link_bytes = *rate;
  }
  return rates;
}

BoundTime BoundOf(absl::Span<const Op> ops, const MachineRates& rates) {
  BoundTime time;
  for (const Op& op : ops) {
    const double compute = kernels::FlopsOf(op) / rates.matmul_flops;
    const double memory = kernels::BytesOf(op) / rates.memory_bytes;
    (compute > memory ? time.compute : time.memory) += std::max(compute, memory);
  }
  return time;
}

double BoundSeconds(absl::Span<const Op> ops, const MachineRates& rates) {
  return BoundOf(ops, rates).Seconds();
}

}  // namespace qlora::engine
