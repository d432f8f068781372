#include "engine/checkpoint/checkpoint_writer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/input_error.h"
#include "kernels/start_thread.h"

namespace qlora::engine {

bool PlanStateCopy(const Setup& setup, Plan* plan) {
  const int64_t every = setup.job.training().save_steps();
  // Without data the number of steps is not known.
  const bool saves_while_training =
      every > 0 && (setup.total_steps == 0 || every < setup.total_steps);
  // States that are shared out are gathered as they are written, by all ranks together.
  if (setup.record.storage.shard_states) return false;
  if (!setup.is_first() || !saves_while_training) return false;
  const int64_t bytes = StateCopy::BytesOf(plan->run.storage);
  if (!setup.device->info().is_host) {
    return !setup.limits.host_bytes || plan->HostBytes() + bytes <= *setup.limits.host_bytes;
  }
  if (plan->total_bytes + bytes > setup.limits.memory_bytes) return false;
  const PlanItem item{kStateCopyItem, bytes};
  const auto place = std::find_if(plan->items.begin(), plan->items.end(),
                                  [&](const PlanItem& other) { return other.bytes < bytes; });
  plan->items.insert(place, item);
  plan->total_bytes += bytes;
  return true;
}

int64_t StateCopyBeside(const Setup& setup, const Plan& plan) {
  return setup.device->info().is_host ? 0 : StateCopy::BytesOf(plan.run.storage);
}

CheckpointWriter::CheckpointWriter(Env* env, Execution* execution, Options options)
    : env_(env), execution_(execution), options_(std::move(options)) {}

CheckpointWriter::~CheckpointWriter() { Finish().IgnoreError(); }

absl::Status CheckpointWriter::Commit(const StateReader& read, const OutputFiles& files,
                                      const proto::RunState& state, HostExchange* exchange) const {
  const absl::Status saved =
      SaveCheckpoint(env_, options_.output_dir, execution_->plan().run.storage, read, files, state,
                     exchange, options_.course);
  if (!saved.ok()) {
    return proto::Annotate(AsInputError(saved),
                           absl::StrCat("saving the checkpoint of step ", state.step()));
  }
  if (options_.keep_last <= 0) return absl::OkStatus();
  return AsInputError(RemoveOldest(env_, options_.output_dir, state.step(), options_.keep_last,
                                   state.best_checkpoint())
                          .status());
}

absl::Status CheckpointWriter::Save(const OutputFiles& files, const proto::RunState& state,
                                    bool now, HostExchange* exchange) {
  if (absl::Status s = Finish(); !s.ok()) return s;
  if (!options_.beside || now || exchange != nullptr) {
    return Commit(ReaderOf(execution_), files, state, exchange);
  }
  if (!copy_) {
    absl::StatusOr<StateCopy> copy = StateCopy::Create(execution_->plan().run.storage);
    if (!copy.ok()) return Commit(ReaderOf(execution_), files, state, nullptr);
    copy_.emplace(*std::move(copy));
  }
  if (absl::Status s = copy_->Take(execution_); !s.ok()) return s;
  absl::StatusOr<std::thread> thread =
      kernels::StartThread("the thread that saves", [this, files, state] {
        const StateReader read = [this](kernels::ConstTensor view, void* to, int64_t bytes) {
          return copy_->Read(view, to, bytes);
        };
        status_ = Commit(read, files, state, nullptr);
        done_ = true;
      });
  if (!thread.ok()) return Commit(ReaderOf(execution_), files, state, nullptr);
  thread_ = *std::move(thread);
  return absl::OkStatus();
}

absl::Status CheckpointWriter::Check() { return done_ ? Finish() : absl::OkStatus(); }

absl::Status CheckpointWriter::Finish() {
  if (!thread_.joinable()) return absl::OkStatus();
  thread_.join();
  done_ = false;
  return std::exchange(status_, absl::OkStatus());
}

}  // namespace qlora::engine
