#include "proto/job_check.h"

#include "proto/job_defaults.h"
#include "proto/job_parse.h"
#include "proto/job_problem.h"
#include "proto/job_rules.h"

namespace qlora::proto {
namespace {

Job Parse(absl::string_view text_proto, const std::string& source_name,
          const std::vector<std::string>& set_overrides, JobProblems& problems) {
  Job job = ParseJobText(text_proto, source_name, problems);
  for (const std::string& override : set_overrides) ApplyOverride(override, job, problems);
  return job;
}

void Check(const Job& job, Command command, JobProblems& problems) {
  CheckFields(job, "", problems);
  CheckContradictions(job, problems);
  CheckRequired(job, command, problems);
}

}  // namespace

absl::StatusOr<Job> ParseJob(absl::string_view text_proto, const std::string& source_name,
                             const std::vector<std::string>& set_overrides) {
  JobProblems problems;
  Job job = Parse(text_proto, source_name, set_overrides, problems);
  if (!problems.empty()) return problems.ToStatus(source_name);
  return job;
}

absl::Status CheckJob(const Job& job, Command command) {
  JobProblems problems;
  Check(job, command, problems);
  return problems.ToStatus("job");
}

absl::StatusOr<Job> LoadJob(absl::string_view text_proto, const std::string& source_name,
                            const std::vector<std::string>& set_overrides, Command command,
                            const JobRule& rule) {
  JobProblems problems;
  const Job job = Parse(text_proto, source_name, set_overrides, problems);
  const bool understood = problems.empty();
  Check(job, command, problems);
  if (rule) rule(job, problems);
  // What looks absent may stand on a line that was not understood.
  if (!understood) problems.DropAbsent();
  if (!problems.empty()) return problems.ToStatus(source_name);
  return WithDefaults(job);
}

}  // namespace qlora::proto
