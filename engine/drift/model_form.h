// A model that is compared with others: where its weights come from, and in which types they are
// stored and computed with. All forms of one comparison have the same shapes (one ModelSpec).

#ifndef QLORA_ENGINE_DRIFT_MODEL_FORM_H_
#define QLORA_ENGINE_DRIFT_MODEL_FORM_H_

#include <optional>
#include <string>
#include <vector>

#include "engine/drift/adapter_weights.h"
#include "engine/io/checkpoint_files.h"
#include "kernels/tensor.h"
#include "quant/spec.h"

namespace qlora::engine {

struct ModelForm {
  std::string name;                                // for people
  const ShardedModel* model = nullptr;             // borrowed
  kernels::DType compute = kernels::DType::kBf16;  // of activations: kBf16 or kF32
  kernels::DType dense = kernels::DType::kBf16;    // what is not in 4 bits is rounded to
  // Of the linears of layers; none: they are dense too. A checkpoint that holds them in 4 bits must
  // hold them so.
  std::optional<quant::QuantSpec> quant;
  std::vector<std::string> kept;            // linears that are dense all the same: module names
  const AdapterWeights* adapter = nullptr;  // borrowed; null: none
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DRIFT_MODEL_FORM_H_
