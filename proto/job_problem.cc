#include "proto/job_problem.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "proto/errors.h"

namespace qlora::proto {

void JobProblems::Add(absl::string_view path, absl::string_view found, absl::string_view allowed,
                      absl::string_view remedy) {
  std::string text = absl::StrCat("found ", found);
  if (!allowed.empty()) absl::StrAppend(&text, "; allowed: ", allowed);
  if (!remedy.empty()) absl::StrAppend(&text, "; ", remedy);
  problems_.push_back({std::string(path), std::move(text)});
}

void JobProblems::AddAbsent(absl::string_view path, absl::string_view remedy) {
  problems_.push_back({std::string(path), absl::StrCat("not given; ", remedy), /*absent=*/true});
}

void JobProblems::AddAt(absl::string_view place, absl::string_view text) {
  const bool echo = std::any_of(problems_.begin(), problems_.end(),
                                [&](const JobProblem& p) { return p.place == place; });
  if (!echo) problems_.push_back({std::string(place), std::string(text)});
}

void JobProblems::DropAbsent() {
  problems_.erase(std::remove_if(problems_.begin(), problems_.end(),
                                 [](const JobProblem& p) { return p.absent; }),
                  problems_.end());
}

absl::Status JobProblems::ToStatus(absl::string_view source_name) const {
  if (problems_.empty()) return absl::OkStatus();
  constexpr size_t kMaxShown = 50;
  std::string message = absl::StrCat(source_name, ": ", problems_.size(),
                                     problems_.size() == 1 ? " problem:" : " problems:");
  for (size_t i = 0; i < std::min(problems_.size(), kMaxShown); ++i) {
    absl::StrAppend(&message, "\n  ", problems_[i].place, ": ", problems_[i].text);
  }
  if (problems_.size() > kMaxShown) {
    absl::StrAppend(&message, "\n  and ", problems_.size() - kMaxShown, " more");
  }
  return BadJobError(message);
}

}  // namespace qlora::proto
