// The rules of a job, by kind; proto/job_check.h runs them all.
#ifndef QLORA_PROTO_JOB_RULES_H_
#define QLORA_PROTO_JOB_RULES_H_

#include "proto/job.pb.h"
#include "proto/job_check.h"
#include "proto/job_problem.h"

namespace qlora::proto {

// By reflection over every set field: numbers in range (proto/job_ranges.h), enums known, strings
// valid UTF-8 without NUL and not empty.
void CheckFields(const google::protobuf::Message& message, const std::string& prefix,
                 JobProblems& problems);

// The names of target modules at the path `list`.
void CheckTargetNames(const google::protobuf::RepeatedPtrField<std::string>& names,
                      const std::string& list, JobProblems& problems);

// Fields that exclude or need each other.
void CheckContradictions(const Job& job, JobProblems& problems);

// Fields without which `command` can't run, and what is wrong for this command only.
void CheckRequired(const Job& job, Command command, JobProblems& problems);

}  // namespace qlora::proto

#endif  // QLORA_PROTO_JOB_RULES_H_
