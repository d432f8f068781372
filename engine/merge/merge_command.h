// Command `merge`: an adapter folded into its base, in each of the ways there are, each held
// against the adapter beside its base on held-out data; one is written.

#ifndef QLORA_ENGINE_MERGE_MERGE_COMMAND_H_
#define QLORA_ENGINE_MERGE_MERGE_COMMAND_H_

#include "absl/status/status.h"
#include "engine/report/console.h"
#include "engine/report/live_progress.h"
#include "engine/setup/setup.h"

namespace qlora::engine {

// The ways, merge.into:
//   BASE        into the weights that the checkpoint stores
//   DEQUANTIZED into the 4-bit base's values, stored in 16 bits: the weights that were trained
//   QUANTIZED   DEQUANTIZED, in 4 bits again
// All that the job's base allows are written beside merge.output, one after another, scored and
// removed, but for the one asked for: it takes its place as a whole. One whose loss is more than
// merge.max_loss_increase over the unmerged adapter's is refused (GateMissedError) unless
// merge.accept_loss. The report, merge.json, .html and .txt, lies in output_dir/merge either way.
//
// Looks at `*stop_signal` between tensors and batches: where it is not 0 what was written is
// removed and the status is Stopped (exit 130, 143). What a kill leaves the next merge to the same
// folder removes.
//
// Disk: two models in 16 bits and one in 4 at most. Memory: that of a comparison
// (engine/drift/compare.h), and for QUANTIZED the 4-bit base.
absl::Status Merge(const Setup& setup, Console* console, StopSignal stop_signal);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_MERGE_MERGE_COMMAND_H_
