// Where every weight, adapter and state of a run is stored: the persistent buffers of its program.

#ifndef QLORA_ENGINE_RECORD_STORAGE_H_
#define QLORA_ENGINE_RECORD_STORAGE_H_

#include <vector>

#include "engine/lora/targets.h"
#include "engine/model/model_spec.h"
#include "engine/optim/parameter_space.h"
#include "engine/program.h"
#include "kernels/ops/quantize.h"
#include "proto/job.pb.h"

namespace qlora::engine {

struct StorageOptions {
  proto::Mode::Value mode = proto::Mode::QLORA;
  kernels::DType compute = kernels::DType::kBf16;  // kBf16 or kF32
  quant::QuantSpec quant;
  LoraTargets lora;  // empty in FULL, and where there is no adapter
  float lora_dropout = 0;
  bool training = true;  // false: adapters are there, states and gradients are not
  bool eight_bit_states = false;
  float weight_decay = 0;
  int64_t pending_gradients = 0;  // buffers of the tree sum beside the one micro-batches write
  int64_t rope_positions = 0;
};

// One tensor of the model as the program sees it. Views are virtual.
struct WeightSlot {
  WeightRow row;
  int64_t parameter = -1;  // in the parameter space where it is trained
  // Linears read `base`; everything else reads `dense`. For a trained weight both are its compute
  // copy.
  kernels::LinearBase base;
  kernels::ConstTensor dense;
  // Where loading writes: exactly one is set for a frozen weight, none for a trained one.
  kernels::QuantizedOutput quantized;
  kernels::Tensor frozen;
};

struct AdapterSlot {
  int64_t a_parameter, b_parameter;
  kernels::AdapterSegment segment;  // without its per-piece dropout counter
};

struct Storage {
  StorageOptions options;
  ModelSpec spec;
  std::vector<WeightSlot> weights;    // in the order of WeightRows
  std::vector<AdapterSlot> adapters;  // in the order of options.lora.modules
  std::vector<int64_t> adapter_of;    // weight index → adapter index or −1
  ParameterSpace space;

  kernels::Tensor dynamic_map;  // f32 [1, 256]
  kernels::Tensor rope_cos, rope_sin;
  // Flat [1, space.size()]; empty where nothing is trained (no adapter in an evaluation).
  kernels::Tensor master, compute, gradient, m, v, m_absmax, v_absmax;
  std::vector<kernels::Tensor> pending_gradients;
  kernels::Tensor segments;

  // Index of the weight with this role, −1 where the model has none.
  int64_t Find(WeightRole role, int64_t layer) const;
  // The view of a parameter that forward reads.
  kernels::Tensor ComputeView(int64_t parameter) const;
  kernels::Tensor GradientView(int64_t parameter) const { return space.View(parameter, gradient); }
};

Storage AddStorage(const ModelSpec& spec, const StorageOptions& options, Program* program);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_RECORD_STORAGE_H_
