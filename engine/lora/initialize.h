// How adapters start: A ~ U(−1/√in, 1/√in), B = 0 (PEFT's default: kaiming_uniform with a = √5).
//
// Element e of A is a function of (seed, the tensor's key, e) alone: neither the order of tensors
// nor the other targets nor threads or ranks change it. One Philox call gives elements 4g … 4g+3:
//   bits = Philox({g low, g high, key low, key high}, {seed low, seed high ^ kStream})
//   u = (bits + ½) / 2³² in (0, 1), exact;   a = (2u − 1) / √in in fp64, rounded once to fp32
// where key = the FNV-1a hash (64 bits) of the tensor's key.
#ifndef QLORA_ENGINE_LORA_INITIALIZE_H_
#define QLORA_ENGINE_LORA_INITIALIZE_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/lora/targets.h"

namespace qlora::engine {

// 64-bit FNV-1a of a tensor's key: its number in counted randomness.
uint64_t TensorKey(absl::string_view name);

// Fills A of `module`, f32 [rank, in] row-major. (B starts as zeros.)
void InitializeLoraA(uint64_t seed, const AdaptedModule& module, absl::Span<float> a);

// What is trained, for the start-up summary.
struct LoraSize {
  int64_t trained_parameters = 0;
  int64_t model_parameters = 0;  // of the frozen model
  double share = 0.0;            // trained / (model + trained), as PEFT prints it
  int64_t adapter_bytes = 0;     // tensors of adapter_model.safetensors in bf16
};
LoraSize MeasureLora(const LoraTargets& targets, absl::Span<const WeightRow> rows);

// "trained: 4,505,600 of 1,104,553,984 parameters (0.4079 %): r = 16 on 44 linears; adapter 8.6
// MiB"
std::string LoraSizeLine(const LoraTargets& targets, const LoraSize& size);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_LORA_INITIALIZE_H_
