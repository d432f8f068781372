// A model with an adapter folded in, W + scale · B·A for every linear that it adapts, as a folder
// in Hugging Face's layout.
//
// Each value is the base's in fp32 plus the adapter's share in fp32, rounded once, to nearest even,
// to the type that the base stores. What is neither adapted nor replaced by `base` is copied byte
// for byte. Tensors that the model's family does not name are left out.
//
// Memory is that of a chunk of rows, whatever the model's size: the base is mapped and let go
// behind the reader, the result goes to the file.

#ifndef QLORA_ENGINE_MERGE_MERGED_MODEL_H_
#define QLORA_ENGINE_MERGE_MERGED_MODEL_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "engine/drift/adapter_weights.h"
#include "engine/io/adapter_file.h"
#include "engine/io/checkpoint_files.h"
#include "engine/merge/base_weights.h"
#include "engine/progress.h"
#include "kernels/device.h"

namespace qlora::engine {

struct MergeInput {
  const ShardedModel& model;      // the checkpoint that names and copied tensors come from
  const ModelSpec& spec;          // of it
  const AdapterWeights& adapter;  // modules all of this model
  BaseWeights& base;
};

struct MergeOptions {
  // A file holds no more than this, or one tensor. 50 GB as in Transformers 5.
  int64_t max_shard_bytes = 50'000'000'000;
  Progress progress = nullptr;
};

// Writes weights, index where there are several shards, config.json without its
// quantization_config, generation settings and tokenizer through `make`; config.json last. Errors
// of the files carry their path.
absl::Status WriteMergedModel(Env* env, const MergeInput& input, const MergeOptions& options,
                              const FileMaker& make, kernels::Device* device);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_MERGE_MERGED_MODEL_H_
