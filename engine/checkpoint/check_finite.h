// Whatever has gone wrong, bad numbers are not what is saved.

#ifndef QLORA_ENGINE_CHECKPOINT_CHECK_FINITE_H_
#define QLORA_ENGINE_CHECKPOINT_CHECK_FINITE_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/tensor.h"

namespace qlora::engine {

// NumbersBad, naming tensor and element, where one of `bytes`, which begin at element `first` of
// tensor `name`, is NaN or infinite.
absl::Status CheckFinite(const std::string& name, kernels::DType type,
                         absl::Span<const uint8_t> bytes, int64_t first = 0);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_CHECKPOINT_CHECK_FINITE_H_
