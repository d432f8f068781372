// From a job, its model and its data to what the program of the run is recorded with.

#ifndef QLORA_ENGINE_SETUP_RECORD_OPTIONS_H_
#define QLORA_ENGINE_SETUP_RECORD_OPTIONS_H_

#include "absl/status/status.h"
#include "engine/setup/setup.h"

namespace qlora::engine {

kernels::DType ComputeTypeOf(const proto::Job& job);

// Fills in `record`, but for the kernels: once targets and data are chosen.
absl::Status ChooseRecordOptions(Setup* setup);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_SETUP_RECORD_OPTIONS_H_
