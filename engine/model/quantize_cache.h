// quantization.quantize_cache: a folder that keeps the 4-bit base, so that later runs load it
// instead of quantizing.
//
// One sub-folder for each pair of base and quantization, named by the first 16 hex digits of the
// pair's SHA-256 and committed as a checkpoint is (engine/io/atomic_folder.h), with the whole hash
// in its manifest. It holds
//   model.safetensors  the layout of engine/model/prequantized.h, the unquantized tensors as the
//   model stores them config.json        the model's, with a quantization_config
// and for NF4 and FP4 loads as a checkpoint. FP4_E3M0 and INT4, which bitsandbytes has not, lie
// there under the names "fp4_e3m0" and "int4": for this engine's caches only.
//
// A cache is an aid, never a condition: one that is damaged, of another base, or can't be written
// is reported and the run goes on from the model itself, with the same bytes.

#ifndef QLORA_ENGINE_MODEL_QUANTIZE_CACHE_H_
#define QLORA_ENGINE_MODEL_QUANTIZE_CACHE_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/comm/host_exchange.h"
#include "engine/io/checkpoint_files.h"
#include "engine/io/env.h"
#include "engine/progress.h"
#include "engine/step/execution.h"

namespace qlora::engine {

struct QuantizeCache {
  Env* env = nullptr;
  std::string folder;     // quantization.quantize_cache; created if need be
  std::string base_hash;  // HashBase
};

// SHA-256, in hex, of what a cached base depends on; `kept`: ModelSpec::kept_in_16_bits.
std::string QuantizeCacheKey(const std::string& base_hash, const quant::QuantSpec& spec,
                             absl::Span<const std::string> kept = {});
// Where the base of this run lies.
std::string QuantizeCachePath(const QuantizeCache& cache, const quant::QuantSpec& spec,
                              absl::Span<const std::string> kept = {});

// LoadWeights from the cache where it holds this base and verifies; else from `model`, and then the
// cache is written (not with shard_base, where no rank has it whole). A model whose linears are all
// quantized already needs no cache: then this is LoadWeights. `notes` gets a line about what was
// done. Errors are those of LoadWeights alone, that of `progress` among them. Mode QLORA only;
// before the first piece runs. Of several runs that quantize the same base at a time one writes it:
// it has ".<name>.lock" in the cache's folder, and first removes what a killed one left unfinished;
// the others go on without. Where the file system has no locks nothing is removed.
absl::Status LoadWeightsCached(const QuantizeCache& cache, const ShardedModel& model,
                               Execution* execution, const Progress& progress,
                               std::vector<std::string>* notes, const SharedReading& reading = {});

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_MODEL_QUANTIZE_CACHE_H_
