// What is wrong with a job: collected, never thrown at the first find, and told all at once.
#ifndef QLORA_PROTO_JOB_PROBLEM_H_
#define QLORA_PROTO_JOB_PROBLEM_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace qlora::proto {

struct JobProblem {
  std::string place;  // field path, "FILE:LINE:COLUMN" or "--set PATH=VALUE"
  std::string text;   // what was found, what is allowed, what to do
  bool absent =
      false;  // something required is missing, which may follow from a line not understood
};

class JobProblems {
 public:
  // Every part is printed; `allowed` and `remedy` may be empty.
  void Add(absl::string_view path, absl::string_view found, absl::string_view allowed,
           absl::string_view remedy);
  // A required field that is not there.
  void AddAbsent(absl::string_view path, absl::string_view remedy);
  // Free text at any place; a second problem at the same place is dropped as an echo of the first.
  void AddAt(absl::string_view place, absl::string_view text);
  void DropAbsent();

  bool empty() const { return problems_.empty(); }
  const std::vector<JobProblem>& problems() const { return problems_; }

  // Ok if there are none, else one BadJobError with a line for each, the first 50 of them.
  absl::Status ToStatus(absl::string_view source_name) const;

 private:
  std::vector<JobProblem> problems_;
};

}  // namespace qlora::proto

#endif  // QLORA_PROTO_JOB_PROBLEM_H_
