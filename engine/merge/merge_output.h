// The folder that a merged model becomes: where it may stand, and what there it may replace.

#ifndef QLORA_ENGINE_MERGE_MERGE_OUTPUT_H_
#define QLORA_ENGINE_MERGE_MERGE_OUTPUT_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/checkpoint/folder_claim.h"
#include "engine/io/atomic_folder.h"
#include "engine/report/console.h"
#include "engine/setup/setup.h"

namespace qlora::engine {

class MergeOutput {
 public:
  // Claims output_dir and merge.output for this process, and clears away what a killed merge to the
  // same folder left beside it. BadJobError, with nothing changed, for a place in the model's
  // folder, for a name that a run gives to something of its own, and where CheckReplaceable
  // refuses.
  static absl::StatusOr<std::unique_ptr<MergeOutput>> Take(const Setup& setup, Console* console);

  // OK where nothing stands at merge.output; with overwrite_output_dir also for an empty folder,
  // and for a model that an earlier merge wrote, with all of its files as they were written and
  // nothing beside them. Otherwise BadJobError naming what is there: it is the user's. Asked again
  // when the result is whole, since a merge takes its time.
  absl::Status CheckReplaceable() const;

  // A new model beside it, whose Commit puts it in place.
  absl::StatusOr<std::unique_ptr<FolderCommit>> NewModel() const;

 private:
  explicit MergeOutput(const Setup& setup) : setup_(setup), path_(setup.job.merge().output()) {}
  absl::Status CheckPlace() const;

  const Setup& setup_;
  const std::string path_;
  std::unique_ptr<FolderClaim> output_dir_, output_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_MERGE_MERGE_OUTPUT_H_
