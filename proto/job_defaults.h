// The value of every field that a job leaves out.
#ifndef QLORA_PROTO_JOB_DEFAULTS_H_
#define QLORA_PROTO_JOB_DEFAULTS_H_

#include "proto/job.pb.h"

namespace qlora::proto {

// `job` with every field that has a default filled in; what the job gives stays. job.proto says
// where each default is from. Fields that the job's mode does not use (quantization in LORA, lora
// in FULL) stay unset, and so does the loser of two that exclude each other (num_train_epochs
// beside max_steps, warmup_ratio beside warmup_steps): a checked job is still a good one
// afterwards. Idempotent.
Job WithDefaults(const Job& job);

// Whether the job names data to evaluate on during training.
bool HasHeldOutData(const Job& job);

// Whether records of a format have a prompt and an answer to it; true for AUTO, which may.
bool HasPrompts(DataFormat::Value format);

}  // namespace qlora::proto

#endif  // QLORA_PROTO_JOB_DEFAULTS_H_
