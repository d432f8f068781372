// A run's 4-bit weight as bitsandbytes' bytes, whatever packing the device keeps it in.

#ifndef QLORA_ENGINE_MODEL_UNPACK_WEIGHT_H_
#define QLORA_ENGINE_MODEL_UNPACK_WEIGHT_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/record/storage.h"
#include "engine/step/execution.h"
#include "quant/spec.h"

namespace qlora::engine {

// Bytes of scratch that UnpackWeight needs.
int64_t UnpackWeightBytes(const WeightRow& row, const quant::QuantSpec& spec);

// The parts of a quantized slot in `execution`'s loading scratch, on the device, until the scratch
// is used again; no piece may be running. `dynamic_map`: Storage::dynamic_map.
absl::StatusOr<kernels::QuantizedOutput> UnpackWeight(const WeightSlot& slot,
                                                      kernels::Tensor dynamic_map,
                                                      Execution* execution);

// The same on the host, where the reference quantizer reads it.
struct HostWeight {
  quant::QuantSpec spec;
  std::vector<uint8_t> codes, absmax_u8;
  std::vector<float> absmax_f32, nested_absmax;
  float offset = 0;

  quant::ConstQuantizedView View() const;
};
absl::StatusOr<HostWeight> UnpackToHost(const WeightSlot& slot, kernels::Tensor dynamic_map,
                                        Execution* execution);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_MODEL_UNPACK_WEIGHT_H_
