// Whether the sizes of a run can be reckoned with at all.

#ifndef QLORA_ENGINE_RECORD_CHECK_SIZE_H_
#define QLORA_ENGINE_RECORD_CHECK_SIZE_H_

#include "absl/status/status.h"
#include "engine/record/record.h"

namespace qlora::engine {

// DoesNotFit for what no machine has room for: beyond it, sizes would leave the numbers that they
// are reckoned in. To be asked before Record.
absl::Status CheckSize(const ModelSpec& spec, const RecordOptions& options);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_RECORD_CHECK_SIZE_H_
