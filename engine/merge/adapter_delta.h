// What an adapter adds to its weight, scale · B·A, in parts of some rows: on the device, in fp32.

#ifndef QLORA_ENGINE_MERGE_ADAPTER_DELTA_H_
#define QLORA_ENGINE_MERGE_ADAPTER_DELTA_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/drift/adapter_weights.h"
#include "kernels/device.h"

namespace qlora::engine {

class AdapterDelta {
 public:
  // Room for any module of `adapter`, `max_values` values of a weight at a time or, where a row is
  // longer, one row. Both must outlive it. ResourceExhausted where the device has no memory.
  static absl::StatusOr<std::unique_ptr<AdapterDelta>> Create(const AdapterWeights& adapter,
                                                              int64_t max_values,
                                                              kernels::Device* device);

  // Bytes of device memory that Create takes.
  int64_t bytes() const { return memory_.bytes(); }

  // values += scale · B·A of rows [first, first + values.size() / module.in). Modules may come in
  // any order; rows of one module one after another save work.
  absl::Status AddTo(const AdapterWeights::Factors& module, int64_t first,
                     absl::Span<float> values);

 private:
  AdapterDelta(const AdapterWeights& adapter, kernels::Device* device);
  absl::Status Load(const AdapterWeights::Factors& module);
  kernels::LinearForward Product(int64_t rows, int64_t cols) const;

  kernels::Device& device_;
  const int64_t rank_;
  const float scale_;
  int64_t a_bytes_ = 0, b_bytes_ = 0, product_bytes_ = 0;
  kernels::Buffer memory_;  // Aᵀ, rows of B, their product, the workspace, one behind another
  const AdapterWeights::Factors* loaded_ = nullptr;  // whose Aᵀ lies there
  std::vector<float> product_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_MERGE_ADAPTER_DELTA_H_
