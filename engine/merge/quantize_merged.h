// A merged model in 4 bits again: what PEFT's merge of a quantized model leaves.

#ifndef QLORA_ENGINE_MERGE_QUANTIZE_MERGED_H_
#define QLORA_ENGINE_MERGE_QUANTIZE_MERGED_H_

#include "absl/status/status.h"
#include "engine/io/adapter_file.h"
#include "engine/io/checkpoint_files.h"
#include "engine/progress.h"
#include "engine/setup/setup.h"

namespace qlora::engine {

// Quantizes `merged`, a 16-bit model of the job's shapes, as the job says and writes it as a
// checkpoint in bitsandbytes' layout, tokenizer included. `progress`: of reading, then of writing.
// Memory: the 4-bit base, as in training.
absl::Status QuantizeMerged(const Setup& setup, const ShardedModel& merged, const FileMaker& make,
                            const Progress& progress);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_MERGE_QUANTIZE_MERGED_H_
