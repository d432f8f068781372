#include "engine/merge/adapter_delta.h"

#include <algorithm>

namespace qlora::engine {

using kernels::DType;

AdapterDelta::AdapterDelta(const AdapterWeights& adapter, kernels::Device* device)
    : device_(*device), rank_(adapter.r), scale_(adapter.Scaling()) {}

absl::StatusOr<std::unique_ptr<AdapterDelta>> AdapterDelta::Create(const AdapterWeights& adapter,
                                                                   int64_t max_values,
                                                                   kernels::Device* device) {
  std::unique_ptr<AdapterDelta> delta(new AdapterDelta(adapter, device));
  int64_t workspace = 0;
  for (const auto& [path, module] : adapter.modules) {
    const int64_t rows = std::clamp<int64_t>(max_values / module.in, 1, module.out);
    delta->a_bytes_ = std::max(delta->a_bytes_, kernels::BufferBytes(module.in * delta->rank_ * 4));
    delta->b_bytes_ = std::max(delta->b_bytes_, kernels::BufferBytes(rows * delta->rank_ * 4));
    delta->product_bytes_ =
        std::max(delta->product_bytes_, kernels::BufferBytes(rows * module.in * 4));
    workspace = std::max(workspace, device->WorkspaceBytes(delta->Product(rows, module.in)));
  }
  absl::StatusOr<kernels::Buffer> memory =
      device->Allocate(delta->a_bytes_ + delta->b_bytes_ + delta->product_bytes_ + workspace);
  if (!memory.ok()) return memory.status();
  delta->memory_ = *std::move(memory);
  return delta;
}

// y [rows, cols] = x · Wᵀ with x the rows of B and W = Aᵀ [cols, rank].
kernels::LinearForward AdapterDelta::Product(int64_t rows, int64_t cols) const {
  uint8_t* const base = static_cast<uint8_t*>(memory_.data());
  kernels::LinearForward op;
  op.x = {base + a_bytes_, DType::kF32, rows, rank_, rank_};
  op.base.kind = kernels::LinearBase::Kind::kDense;
  op.base.out_features = cols;
  op.base.in_features = rank_;
  op.base.dense = {base, DType::kF32, cols, rank_, rank_};
  op.y = {base + a_bytes_ + b_bytes_, DType::kF32, rows, cols, cols};
  return op;
}

absl::Status AdapterDelta::Load(const AdapterWeights::Factors& module) {
  loaded_ = nullptr;
  std::vector<float> transposed(module.a.size());
  for (int64_t i = 0; i < rank_; ++i) {
    for (int64_t k = 0; k < module.in; ++k) transposed[k * rank_ + i] = module.a[i * module.in + k];
  }
  if (absl::Status s =
          device_.CopyIn(memory_.data(), transposed.data(), int64_t(transposed.size()) * 4);
      !s.ok()) {
    return s;
  }
  loaded_ = &module;
  return absl::OkStatus();
}

absl::Status AdapterDelta::AddTo(const AdapterWeights::Factors& module, int64_t first,
                                 absl::Span<float> values) {
  if (loaded_ != &module) {
    if (absl::Status s = Load(module); !s.ok()) return s;
  }
  const int64_t rows = int64_t(values.size()) / module.in;
  kernels::LinearForward op = Product(rows, module.in);
  if (absl::Status s = device_.CopyIn(const_cast<void*>(op.x.data), module.b.data() + first * rank_,
                                      rows * rank_ * 4);
      !s.ok()) {
    return s;
  }
  const int64_t workspace = device_.WorkspaceBytes(op);
  op.workspace = {static_cast<uint8_t*>(op.y.data) + product_bytes_, DType::kU8, 1, workspace,
                  workspace};
  if (absl::Status s = device_.RunOnce({op}); !s.ok()) return s;
  product_.resize(values.size());
  if (absl::Status s = device_.CopyOut(product_.data(), op.y.data, int64_t(values.size()) * 4);
      !s.ok()) {
    return s;
  }
  for (size_t i = 0; i < values.size(); ++i) values[i] += scale_ * product_[i];
  return absl::OkStatus();
}

}  // namespace qlora::engine
