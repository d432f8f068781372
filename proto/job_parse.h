// A job's text and its --set overrides to a message. Syntax only; proto/job_check.h judges the
// contents.
#ifndef QLORA_PROTO_JOB_PARSE_H_
#define QLORA_PROTO_JOB_PARSE_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "proto/job.pb.h"
#include "proto/job_problem.h"

namespace qlora::proto {

// A job has some 90 fields; what is larger or deeper than this is no job.
inline constexpr size_t kMaxJobBytes = 1 << 20;
inline constexpr int kMaxJobDepth = 32;

// Reads text format. Each syntax error, unknown field and unknown enum value goes to `problems`
// with "source_name:line:column" (from 1); a bad line that opens or closes no message is then left
// out and reading goes on. Returns what was understood.
Job ParseJobText(absl::string_view text_proto, absl::string_view source_name,
                 JobProblems& problems);

// Applies "path=value" to `job`: "training.learning_rate=1e-4". A string needs no quotes; for a
// list the values stand between commas and replace the job's; an empty value unsets the field.
void ApplyOverride(absl::string_view path_and_value, Job& job, JobProblems& problems);

}  // namespace qlora::proto

#endif  // QLORA_PROTO_JOB_PARSE_H_
