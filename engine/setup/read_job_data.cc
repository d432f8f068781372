#include "engine/setup/read_job_data.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/commands/evaluate.h"
#include "engine/setup/take_data.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

using proto::Command;

class DataReader {
 public:
  DataReader(const Setup* first, Setup* setup) : first_(first), s_(*setup) {}

  absl::Status Run() {
    const proto::Data& data = s_.job.data();
    if (IsAboutTraining(s_.command) && data.has_train_file()) {
      if (absl::Status s = ReadTrainData(); !s.ok()) return s;
    }
    if (s_.command == Command::kDrift) {
      return ReadComparedData("drift.file", s_.job.drift().file(), s_.job.drift().max_samples());
    }
    if (s_.command == Command::kMerge) {
      return ReadComparedData("merge.file", s_.job.merge().file(), s_.job.merge().max_samples());
    }
    if (s_.command == Command::kEval) {
      // As in training, all that a fraction holds out is looked at.
      const bool is_file = s_.job.eval().has_file() || data.has_eval_file();
      return ReadComparedData("eval.file", s_.job.eval().file(),
                              is_file ? data.max_eval_samples() : 0);
    }
    if (IsAboutTraining(s_.command) && data.has_eval_file()) {
      if (absl::Status s = TakeData(s_, "data.eval_file", data.eval_file(), data.max_eval_samples(),
                                    &s_.eval_data);
          !s.ok()) {
        return s;
      }
    }
    MakeBatchers();
    return absl::OkStatus();
  }

 private:
  // Whether the first setup has read this one's training data already, and held out the same of it.
  bool SharesTrainData() const {
    return first_ != nullptr && first_->job.data().train_file() == s_.job.data().train_file() &&
           first_->job.data().eval_fraction() == s_.job.data().eval_fraction() &&
           (s_.job.data().eval_fraction() == 0 || first_->job.seed() == s_.job.seed());
  }

  absl::Status ReadTrainData() {
    const proto::Data& data = s_.job.data();
    if (SharesTrainData()) {
      s_.train_data = first_->train_data;
      if (data.eval_fraction() > 0) s_.eval_data = first_->eval_data;
      return absl::OkStatus();
    }
    if (absl::Status s = TakeData(s_, "data.train_file", data.train_file(),
                                  data.max_train_samples(), &s_.train_data);
        !s.ok()) {
      return s;
    }
    return data.eval_fraction() == 0 ? absl::OkStatus() : HoldOut(&s_.train_data);
  }

  // Takes data.eval_fraction of `all`.
  absl::Status HoldOut(Dataset* all) {
    const proto::Data& data = s_.job.data();
    s_.eval_data = SplitForEvaluation(all, data.eval_fraction(), s_.job.seed());
    if (!s_.eval_data.samples.empty()) return absl::OkStatus();
    return proto::BadDataError(absl::StrCat(
        data.train_file(), " has ", all->samples.size(),
        " sample: data.eval_fraction needs two to hold one out; give more, or remove it"));
  }

  // The command's own file, else data.eval_file, else what is held out of train_file, else its
  // beginning.
  absl::Status ReadComparedData(absl::string_view field, const std::string& own_file,
                                int64_t most) {
    const proto::Data& data = s_.job.data();
    absl::Status status;
    if (!own_file.empty()) {
      s_.eval_source = own_file;
      status = TakeData(s_, field, own_file, most, &s_.eval_data);
    } else if (data.has_eval_file()) {
      s_.eval_source = data.eval_file();
      status = TakeData(s_, "data.eval_file", data.eval_file(), most, &s_.eval_data);
    } else if (data.eval_fraction() > 0) {
      s_.eval_source = "what is held out of " + data.train_file();
      Dataset all;
      status = TakeData(s_, "data.train_file", data.train_file(), data.max_train_samples(), &all);
      if (status.ok()) status = HoldOut(&all);
      if (most > 0 && int64_t(s_.eval_data.samples.size()) > most) {
        s_.eval_data.samples.resize(most);
      }
    } else {
      s_.eval_source = "the beginning of " + data.train_file();
      status = TakeData(s_, "data.train_file", data.train_file(), most, &s_.eval_data);
    }
    if (!status.ok()) return status;
    MakeBatchers();
    return absl::OkStatus();
  }

  void MakeBatchers() {
    const proto::Training& training = s_.job.training();
    const proto::Data& data = s_.job.data();
    if (!s_.train_data.samples.empty()) {
      s_.train_batches.emplace(
          &s_.train_data,
          BatcherOptions{.rows_per_micro_batch = training.per_device_train_batch_size(),
                         .micro_batches_per_step =
                             int64_t{training.gradient_accumulation_steps()} * s_.world(),
                         .max_length = data.max_length(),
                         .packing = data.packing(),
                         .shuffle = data.shuffle(),
                         .seed = s_.job.seed()});
      s_.total_steps = training.has_max_steps()
                           ? training.max_steps()
                           : s_.train_batches->StepsOf(training.num_train_epochs());
    }
    if (!s_.eval_data.samples.empty()) {
      const int64_t rows = s_.job.eval().has_per_device_eval_batch_size()
                               ? s_.job.eval().per_device_eval_batch_size()
                               : std::max(1, training.per_device_train_batch_size());
      s_.eval_batches.emplace(&s_.eval_data, EvalBatcherOptions(rows, data.max_length()));
    }
  }

  const Setup* const first_;
  Setup& s_;
};

}  // namespace

absl::Status ReadJobData(const Setup* first, Setup* setup) {
  return DataReader(first, setup).Run();
}

}  // namespace qlora::engine
