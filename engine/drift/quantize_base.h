// Command `quantize`: the model's 4-bit checkpoint, and what its weights lost.

#ifndef QLORA_ENGINE_DRIFT_QUANTIZE_BASE_H_
#define QLORA_ENGINE_DRIFT_QUANTIZE_BASE_H_

#include "absl/status/status.h"
#include "engine/report/console.h"
#include "engine/report/live_progress.h"
#include "engine/setup/setup.h"

namespace qlora::engine {

// Writes output_dir/quantized, which loads as a checkpoint of this engine, of Transformers and of
// bitsandbytes, with quantization_error.json beside the weights. A folder that holds a model
// already is refused unless overwrite_output_dir, and then stays whole until the new one is; one
// with files that no quantize wrote is refused. Types that bitsandbytes has not are BadJobError.
// Looks at `*stop_signal` between tensors: where it is not 0 the unfinished folder is removed and
// the status is Stopped; once the model is whole it stays, without the table. What a kill leaves
// the next quantize to the same folder removes.
absl::Status QuantizeBase(const Setup& setup, Console* console, StopSignal stop_signal);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DRIFT_QUANTIZE_BASE_H_
