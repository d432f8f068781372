#include "engine/checkpoint/disk_room.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/checkpoint/state_file.h"
#include "engine/io/atomic_folder.h"
#include "engine/io/model_files.h"
#include "engine/plan/plan_limits.h"

namespace qlora::engine {
namespace {

constexpr int64_t kBlockBytes = 4096;
// A tensor's entry in the header of a safetensors file, generously.
constexpr int64_t kHeaderBytes = 192;
// adapter_config.json or config.json, trainer_state.json.
constexpr int64_t kSmallResultFiles = 2;
// run_state.pb, manifest.pb.
constexpr int64_t kSmallStateFiles = 2;

int64_t InBlocks(int64_t bytes) { return kernels::AlignUp(bytes, kBlockBytes); }

// What the user gets: adapter or model, tokenizer.
int64_t ResultBytes(const Setup& setup, const Storage& storage, int64_t course) {
  int64_t weights = 0;
  for (const Parameter& p : storage.ParametersOf(course)) {
    weights += p.rows * p.cols * kernels::SizeOf(storage.trained().dtype) + kHeaderBytes;
  }
  int64_t bytes = InBlocks(weights) + kSmallResultFiles * kBlockBytes;
  for (const int64_t size : TokenizerFileSizes(setup.env, setup.tokenizer_folder)) {
    bytes += InBlocks(size);
  }
  return bytes;
}

int64_t StateBytes(const Storage& storage, int64_t course) {
  const int64_t tensors =
      int64_t(std::size(kStateFields)) * int64_t(storage.ParametersOf(course).size());
  return InBlocks(StateFileBytes(storage, course) + tensors * kHeaderBytes) +
         kSmallStateFiles * kBlockBytes;
}

// Of steps [begin, end): how many are followed by a checkpoint.
int64_t SavesIn(int64_t begin, int64_t end, int64_t every) {
  if (begin >= end) return 0;
  if (every == 0) return 1;
  return end / every - begin / every + (end % every != 0 ? 1 : 0);
}

int64_t CheckpointsIn(Env* env, const std::string& folder) {
  const absl::StatusOr<std::vector<std::string>> names = env->List(folder);
  if (!names.ok()) return 0;
  return std::count_if(names->begin(), names->end(),
                       [](const std::string& name) { return CheckpointStep(name).has_value(); });
}

}  // namespace

DiskNeed& DiskNeed::operator+=(const DiskNeed& other) {
  checkpoints += other.checkpoints;
  checkpoint_bytes += other.checkpoint_bytes;
  result_bytes += other.result_bytes;
  paged_bytes = std::max(paged_bytes, other.paged_bytes);  // courses have the plan in common
  return *this;
}

DiskNeed NeedOf(const Setup& setup, const Plan& plan, int64_t course, int64_t steps_done) {
  const Storage& storage = plan.run.storage;
  const proto::Training& training = setup.job.training();
  const int64_t there = CheckpointsIn(setup.env, setup.job.output_dir());
  const int64_t stay = setup.job.overwrite_output_dir() ? 0 : there;
  const int64_t saves = SavesIn(steps_done, setup.total_steps, training.save_steps());
  // An old one goes when the new one is there; the best one stays, where there are held-out data to
  // tell it by.
  const int64_t most = training.save_total_limit() + 1 + (setup.eval_batches ? 1 : 0);

  DiskNeed need;
  const int64_t result = ResultBytes(setup, storage, course);
  if (saves > 0) {
    need.checkpoints = std::max<int64_t>(1, std::min(stay + saves, most) - there);
    need.checkpoint_bytes = need.checkpoints * (result + StateBytes(storage, course));
  }
  need.result_bytes = result;
  if (setup.device->info().is_host) need.paged_bytes = plan.HostBytes();
  return need;
}

DiskNeed NeedOf(const PlannedRun& run, const Plan& plan) {
  DiskNeed need;
  for (size_t i = 0; i < run.setups.size(); ++i) {
    need += NeedOf(*run.setups[i], plan, int64_t(i), /*steps_done=*/0);
  }
  return need;
}

std::string DescribeShortage(Env* env, const std::string& folder, const DiskNeed& need) {
  const absl::StatusOr<int64_t> room = env->FreeSpace(PresentFolder(env, folder));
  if (!room.ok() || *room >= need.Total()) return "";
  std::vector<std::string> parts;
  if (need.checkpoints > 0) {
    parts.push_back(absl::StrCat(FormatBytes(need.checkpoint_bytes), " for ", need.checkpoints,
                                 need.checkpoints == 1 ? " checkpoint" : " checkpoints"));
  }
  parts.push_back(absl::StrCat(FormatBytes(need.result_bytes), " for the result"));
  if (need.paged_bytes > 0) {
    parts.push_back(absl::StrCat(FormatBytes(need.paged_bytes),
                                 " for optimizer states that memory has no room for"));
  }
  return absl::StrCat(
      "the disk of output_dir ", folder, " has ", FormatBytes(*room),
      " free, and this run is going to take about ", FormatBytes(need.Total()),
      " of it: ", absl::StrJoin(parts, ", "), ". Free some, name an output_dir on another disk",
      need.checkpoints > 1 ? ", or keep fewer checkpoints (training.save_total_limit)" : "");
}

}  // namespace qlora::engine
