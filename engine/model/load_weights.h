// Fills a run's weights from a checkpoint, tensor by tensor: converted, quantized on the device, or
// taken over where they already lie in bitsandbytes' 4-bit layout. Host memory beyond the plan is
// never needed: sources are memory-mapped.

#ifndef QLORA_ENGINE_MODEL_LOAD_WEIGHTS_H_
#define QLORA_ENGINE_MODEL_LOAD_WEIGHTS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/comm/host_exchange.h"
#include "engine/io/checkpoint_files.h"
#include "engine/progress.h"
#include "engine/record/storage.h"
#include "engine/step/execution.h"

namespace qlora::engine {

// Checks that the checkpoint has every tensor of WeightRows(spec) with its shape and a type that
// can be read, before anything is allocated; all findings at once. Linears of layers may lie there
// in 4 bits, in mode QLORA and as `quant` has it. BadDataError, or BadJobError where only mode or
// quantization stand in the way. Clears spec->tied_embeddings where a tied model's file holds a
// head that differs from its embedding, and sets spec->stored_dtype to what the files hold.
// Warnings (tensors that are not used, say) go to `warnings`.
absl::Status CheckCheckpoint(const ShardedModel& model, proto::Mode::Value mode,
                             const quant::QuantSpec& quant, ModelSpec* spec,
                             std::vector<std::string>* warnings);

// Bytes of staging and workspace that LoadWeights needs, and with `writes_cache` LoadWeightsCached:
// PlanLimits::loading_bytes. Without a model: as if it had its weights in bf16.
int64_t LoadingBytes(const ShardedModel* model, const ModelSpec& spec,
                     const StorageOptions& options, const kernels::Device& device,
                     bool writes_cache);

// Loads every weight of `execution`'s run: quantizes, converts, or copies; also fills the 8-bit
// map, the rotary tables, and for a trained weight the fp32 master and its compute copy. A NaN or
// infinity in a weight is DataLoss naming tensor and element.
// Where several ranks take the same weights, the first of them reads and quantizes them and hands
// each tensor to the others; with shard_base a rank keeps its share of it.
absl::Status LoadWeights(const ShardedModel& model, Execution* execution, const Progress& progress,
                         const SharedReading& reading = {});

// One frozen weight alone, from the checkpoint's tensor slot.row.name. The tables must be there;
// the arena must be free and as long as LoadingBytes has it.
absl::Status LoadWeight(const ShardedModel& model, const WeightSlot& slot, Execution* execution);

// The tables alone (8-bit map, rotary tables, parameter segments): LoadWeights does this too.
absl::Status FillTables(Execution* execution);

// A model that starts from nothing: matrices N(0, initializer_range), norms 1, biases 0, by counted
// randomness on (seed, tensor name, element). FULL mode only.
absl::Status InitializeWeights(uint64_t seed, Execution* execution);

// Writes one trained parameter: `values` are its rows · cols values in fp32; sets the master and
// the compute copy where there is one, and zeros in the gap behind it. All ranks call it with all
// of the values; each keeps its share.
absl::Status WriteTrained(Execution* execution, int64_t parameter, absl::Span<const float> values);
// Bytes of the largest `values` that a run's start holds.
int64_t WriteTrainedBytes(const Storage& storage);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_MODEL_LOAD_WEIGHTS_H_
