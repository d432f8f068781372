// Weights that lie in a checkpoint in bitsandbytes' 4-bit layout: published models, and our own
// quantize cache.
//
// A weight P.weight [out, in] of n elements, in blocks of b:
//   P.weight                  U8 [ceil(n/2), 1] codes; BF16, F16 or F32 holding the same bytes is
//   read too P.weight.absmax           U8 [ceil(n/b)], or F32 without double quantization
//   P.weight.quant_map        F32 [16]: the code book
//   P.weight.nested_absmax    F32 [ceil(blocks/256)], P.weight.nested_quant_map F32 [256]: double
//   quantization only P.weight.quant_state.bitsandbytes__<type>  U8: JSON, see ReadPrequantized
// What the bytes mean: quant/NF4.md. Which weights are quantized is told by the last tensor, never
// by names of layers.

#ifndef QLORA_ENGINE_MODEL_PREQUANTIZED_H_
#define QLORA_ENGINE_MODEL_PREQUANTIZED_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/io/adapter_file.h"
#include "engine/io/checkpoint_files.h"
#include "engine/progress.h"
#include "engine/record/storage.h"
#include "engine/step/execution.h"

namespace qlora::engine {

// True where the checkpoint holds a quant_state for this row.
bool IsPrequantized(const ShardedModel& model, const WeightRow& row);

// The names of the tensors that may stand beside a row's weight, whether they are there or not.
std::vector<std::string> PrequantizedNames(const WeightRow& row);
// "NAME.quant_state.bitsandbytes__nf4".
std::string QuantStateName(const WeightRow& row, quant::QuantType type);

struct PrequantizedWeight {
  quant::QuantSpec spec;
  Dtype original_dtype = Dtype::kBF16;  // of the weight before it was quantized: BF16, F16 or F32
  float offset = 0;                     // double quantization only, as is nested_absmax
  ShardedModel::Tensor codes, absmax, nested_absmax;
};

// What the checkpoint holds for a row that IsPrequantized, checked completely but for the values of
// the scales. Strict: the JSON has quant_type, blocksize, dtype, shape and, all or none,
// nested_blocksize (256), nested_dtype (float32) and nested_offset, and no other key; the nested
// map is SignedDynamicMap bit for bit, since kernels know no other. DataLoss (BadDataError) names
// file and weight, with all faults. A code book that differs from ours is a warning: bitsandbytes
// itself reads only the type's name.
absl::StatusOr<PrequantizedWeight> ReadPrequantized(const ShardedModel& model, const WeightRow& row,
                                                    std::vector<std::string>* warnings);

// The fields of a job that ask for `spec`, in its own words: "bnb_4bit_quant_type: NF4 block_size:
// 64 ...".
std::string QuantizationFields(const quant::QuantSpec& spec);
// The same with the linears that stay in 16 bits: what, with its checkpoint, makes a 4-bit base.
std::string BaseFields(const quant::QuantSpec& spec, absl::Span<const std::string> kept);

// Reads one weight and holds it against the job's spec: BadJobError says which fields would agree.
absl::Status CheckPrequantized(const ShardedModel& model, const WeightRow& row,
                               const quant::QuantSpec& spec, std::vector<std::string>* warnings);

// Takes the stored bytes over into `to`, the slot's output with real addresses, through the
// device's Pack; FillTables must have run. Scales that are NaN or infinite are DataLoss naming
// tensor and element. `scratch` is device memory of LoadPrequantizedBytes.
absl::Status LoadPrequantized(const ShardedModel& model, const WeightSlot& slot,
                              const kernels::QuantizedOutput& to, uint8_t* scratch,
                              Execution* execution);
int64_t LoadPrequantizedBytes(const ShardedModel& model, const WeightRow& row,
                              const quant::QuantSpec& spec, const kernels::Device& device);

// Writes the run's quantized weights, and the other tensors of `model` in their stored types, as
// model.safetensors, and config.json with a quantization_config, through `make`. Other tensors are
// those that the run reads: extras of the checkpoint are left out. Uses the loading scratch: call
// it before the first piece runs. Types that bitsandbytes has not are written under our own names
// (QuantTypeName): for the quantize cache only. Scratch: UnpackWeightBytes.
struct QuantizedFilesOptions {
  bool with_model_files = false;  // CopyModelFiles too, between weights and config.json
  Progress progress = nullptr;    // of the weights
};
absl::Status WriteQuantizedFiles(Env* env, const FileMaker& make, const ShardedModel& model,
                                 Execution* execution, const QuantizedFilesOptions& options = {});

// OK for a type that bitsandbytes has, NF4 and FP4: what is written with another loads in no other
// program. BadJobError naming the job's field.
absl::Status CheckBitsandbytesHas(const quant::QuantSpec& spec);

// The same as a folder that loads as a checkpoint of this engine, of Transformers and of
// bitsandbytes; the model's tokenizer and generation settings are copied too. `folder` appears, or
// is replaced, as a whole (FolderCommit). CheckBitsandbytesHas holds.
absl::Status WritePrequantized(Env* env, const std::string& folder, const ShardedModel& model,
                               Execution* execution, const Progress& progress = nullptr);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_MODEL_PREQUANTIZED_H_
