// From the text of a job to a job that can be run, or to everything that is wrong with it.
#ifndef QLORA_PROTO_JOB_CHECK_H_
#define QLORA_PROTO_JOB_CHECK_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/job.pb.h"
#include "proto/job_problem.h"

namespace qlora::proto {

// What the job is wanted for: each command needs other fields.
enum class Command {
  kTrain,
  kPlan,
  kInspect,
  kEval,
  kGenerate,
  kQuantize,
  kDrift,
  kMerge,
  kSweep,
};

// Parses text format and applies the overrides ("path=value") in their order. Errors
// (kInvalidArgument) list every syntax error and unknown name with its place and the nearest
// allowed names.
absl::StatusOr<Job> ParseJob(absl::string_view text_proto, const std::string& source_name,
                             const std::vector<std::string>& set_overrides);

// Everything about `job` that can be judged without opening a file: ranges, contradictions, fields
// that `command` needs. `job` as the user gave it; one that WithDefaults() filled in gives the same
// verdict. The error lists all problems, each with field path, what was found, what is allowed,
// what to do.
absl::Status CheckJob(const Job& job, Command command);

// What a layer above can judge of a job without opening a file: a regular expression, say.
using JobRule = std::function<void(const Job& job, JobProblems& problems)>;

// ParseJob, CheckJob and WithDefaults in one, with the problems of all, and of `rule`, in one
// error.
absl::StatusOr<Job> LoadJob(absl::string_view text_proto, const std::string& source_name,
                            const std::vector<std::string>& set_overrides, Command command,
                            const JobRule& rule = nullptr);

}  // namespace qlora::proto

#endif  // QLORA_PROTO_JOB_CHECK_H_
