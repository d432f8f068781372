// Commands `train` and `sweep`: from a job to an adapter, from several jobs to several adapters
// over one base.

#ifndef QLORA_ENGINE_COMMANDS_TRAIN_H_
#define QLORA_ENGINE_COMMANDS_TRAIN_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/comm/stop_request.h"
#include "engine/commands/course.h"
#include "engine/report/console.h"
#include "engine/setup/setup.h"

namespace qlora::engine {

// Trains to the last step, resuming from the newest checkpoint in output_dir that verifies, and
// writes the results there. Where `stop` is set the step is finished, an evaluation left to the run
// that goes on, the state saved, and the status is Stopped (exit 130, 143).
absl::Status Train(const Setup& setup, Console* console, StopFlag* stop);

// Several courses of one run: in each step all that are active and of the current round take part,
// the rows of a group's beside each other. Each goes by its own setup; the first setup's record and
// limits describe the run.
struct Together {
  struct Member {
    const Setup* setup;
    std::string name;
    int64_t round = 0;  // rounds follow one another, from 0
    int64_t group = 0;  // within the round
  };
  std::vector<Member> members;
  // Asked between rounds, with all courses: whether the next round is wanted. Empty: always.
  std::function<bool(absl::Span<const std::unique_ptr<Course>> courses, int64_t next_round)>
      wants_round;
  // Sees all courses at the end; those of rounds that were not wanted have not begun.
  std::function<absl::Status(absl::Span<const std::unique_ptr<Course>> courses)> report;
};
// As Train. A course whose numbers go bad ends alone: the others go on, and what it ended with is
// returned at the end, before gates that others miss.
absl::Status TrainTogether(const Together& together, Console* console, StopFlag* stop);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMMANDS_TRAIN_H_
