// The data files that a job names, as samples and batches.

#ifndef QLORA_ENGINE_SETUP_READ_JOB_DATA_H_
#define QLORA_ENGINE_SETUP_READ_JOB_DATA_H_

#include "absl/status/status.h"
#include "engine/setup/setup.h"

namespace qlora::engine {

// Reads what the command needs and makes the batchers: train_data, eval_data and what is made of
// them in `setup`, whose job, tokenizer and model spec are there. `first`: another setup of the
// same run, whose training data is taken over where it is the same; or null.
absl::Status ReadJobData(const Setup* first, Setup* setup);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_SETUP_READ_JOB_DATA_H_
