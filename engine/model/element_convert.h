// Converts stored tensors between 16- and 32-bit floats, a chunk at a time, and finds what is not
// finite.

#ifndef QLORA_ENGINE_MODEL_ELEMENT_CONVERT_H_
#define QLORA_ENGINE_MODEL_ELEMENT_CONVERT_H_

#include <cstdint>
#include <optional>

#include "absl/types/span.h"
#include "engine/io/dtype.h"
#include "kernels/tensor.h"

namespace qlora::engine {

// BF16, F16 and F32 as the kernels name them; nullopt for types that no weight may have.
std::optional<kernels::DType> FloatType(Dtype stored);

// Converts `count` elements, rounding to nearest even. `from` may stand at any address. Returns the
// index of the first element that is NaN or infinite before or after, or −1.
int64_t ConvertElements(kernels::DType from_type, const uint8_t* from, int64_t count,
                        kernels::DType to_type, void* to);

// Index of the first element that is NaN or infinite, −1 where there is none: types that are no
// floats have none.
int64_t FirstNonFinite(kernels::DType type, absl::Span<const uint8_t> bytes);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_MODEL_ELEMENT_CONVERT_H_
