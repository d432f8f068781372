// What base an adapter was trained on, as the run that trained it noted.

#ifndef QLORA_ENGINE_MERGE_TRAINED_BASE_H_
#define QLORA_ENGINE_MERGE_TRAINED_BASE_H_

#include <string>

#include "engine/setup/setup.h"

namespace qlora::engine {

// A warning where the run that trained the adapter in `folder` had its base in other bits than
// `setup` has: mode, type, blocks, or what stays in 16 bits. The run is asked by its
// qlora_run.json, else by the job.textproto in the folder or, of a checkpoint, beside it; empty
// where none of them can be read, since other programs' adapters do not tell.
std::string OtherBaseWarning(const Setup& setup, const std::string& folder);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_MERGE_TRAINED_BASE_H_
