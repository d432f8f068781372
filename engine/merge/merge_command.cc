#include "engine/merge/merge_command.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/commands/gates.h"
#include "engine/drift/compare.h"
#include "engine/drift/drift_forms.h"
#include "engine/input_error.h"
#include "engine/merge/dequantized_weights.h"
#include "engine/merge/merge_output.h"
#include "engine/merge/merge_report.h"
#include "engine/merge/merged_model.h"
#include "engine/merge/quantize_merged.h"
#include "engine/merge/trained_base.h"
#include "engine/model/prequantized.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

using proto::MergeInto;

// One way of merging, while its folder has a temporary name.
struct Merged {
  MergeInto::Value into;
  std::unique_ptr<FolderCommit> folder;
  ShardedModel model;
};

class MergeRun {
 public:
  MergeRun(const Setup& setup, Console* console, StopSignal stop_signal)
      : setup_(setup),
        merge_(setup.job.merge()),
        console_(*console),
        stop_signal_(stop_signal),
        output_(setup.job.merge().output()),
        context_(StreamContextOf(setup)),
        base_(TrainedForm(setup)) {}

  absl::Status Run() {
    if (absl::Status s = CheckOutput(); !s.ok()) return s;
    if (absl::Status s = ReadAdapter(); !s.ok()) return s;
    if (absl::Status s = ScoreUnmerged(); !s.ok()) return s;
    for (const MergeInto::Value into : Ways()) {
      absl::StatusOr<Merged> merged = Make(into);
      if (!merged.ok()) return merged.status();
      if (absl::Status s = Score(*merged); !s.ok()) return s;
      if (into == merge_.into()) chosen_ = std::move(merged->folder);
      // QUANTIZED, which comes next, is made of it.
      if (into == MergeInto::DEQUANTIZED) dequantized_ = *std::move(merged);
    }
    return Finish();
  }

 private:
  Progress Showing(std::string what) {
    return LiveProgress(&console_, std::move(what), stop_signal_,
                        absl::StrCat("stopped; nothing was written to ", output_,
                                     ", and the same command begins anew"));
  }

  bool HasStoredBase() const { return !setup_.spec.prequantized; }

  // In the order in which they are made.
  std::vector<MergeInto::Value> Ways() const {
    if (setup_.job.mode() == proto::Mode::LORA) return {MergeInto::BASE};
    std::vector<MergeInto::Value> ways;
    if (HasStoredBase()) ways.push_back(MergeInto::BASE);
    ways.push_back(MergeInto::DEQUANTIZED);
    ways.push_back(MergeInto::QUANTIZED);
    return ways;
  }

  absl::Status CheckOutput() {
    if (merge_.into() == MergeInto::BASE && !HasStoredBase()) {
      return proto::BadJobError(absl::StrCat(
          "merge.into: found BASE; ", setup_.model_folder,
          " stores its linears in 4 bits, so that there is no 16-bit base; allowed: DEQUANTIZED, "
          "QUANTIZED; or give the model that it was quantized from"));
    }
    if (merge_.into() == MergeInto::QUANTIZED) {
      const absl::Status known = CheckBitsandbytesHas(setup_.record.storage.quant);
      if (!known.ok()) return proto::Annotate(known, "merge.into: QUANTIZED");
    }
    if (merge_.into() == MergeInto::BASE && setup_.residual_note &&
        setup_.job.mode() == proto::Mode::QLORA) {
      return proto::BadJobError(absl::StrCat(
          "merge.into: found BASE; the adapter of ", merge_.adapter(),
          " started from what the 4-bit base lost, which the 16-bit base still has; allowed: "
          "DEQUANTIZED, QUANTIZED"));
    }
    absl::StatusOr<std::unique_ptr<MergeOutput>> output = MergeOutput::Take(setup_, &console_);
    if (!output.ok()) return output.status();
    place_ = *std::move(output);
    return absl::OkStatus();
  }

  absl::Status ReadAdapter() {
    absl::StatusOr<AdapterWeights> adapter =
        ReadAdapterWeights(setup_.env, merge_.adapter(), setup_.targets.modules);
    if (!adapter.ok()) return proto::Annotate(AsInputError(adapter.status()), "merge.adapter");
    adapter_ = *std::move(adapter);
    if (const std::string other = OtherBaseWarning(setup_, merge_.adapter()); !other.empty()) {
      console_.Warning(other);
    }
    adapted_ = base_;
    adapted_.adapter = &adapter_;
    return absl::OkStatus();
  }

  absl::StatusOr<Comparison> Compare(const ModelForm& other, const std::string& what) {
    const ModelForm forms[] = {adapted_, other};
    absl::StatusOr<Comparison> comparison = CompareModels(
        context_, forms, setup_.eval_data, *setup_.eval_batches, {.progress = Showing(what)});
    console_.EndLive();
    return comparison;
  }

  absl::Status ScoreUnmerged() {
    absl::StatusOr<Comparison> comparison = Compare(base_, "the base");
    if (!comparison.ok()) return comparison.status();
    report_.set_model(setup_.job.model());
    report_.set_adapter(merge_.adapter());
    report_.set_data(setup_.eval_source);
    report_.set_samples(int64_t(setup_.eval_data.samples.size()));
    report_.set_tokens(comparison->models[0].tokens);
    report_.set_base_loss(comparison->models[1].Loss());
    report_.set_adapter_loss(comparison->models[0].Loss());
    report_.set_adapter_perplexity(comparison->models[0].Perplexity());
    report_.set_max_loss_increase(merge_.max_loss_increase());
    return absl::OkStatus();
  }

  absl::StatusOr<Merged> Make(MergeInto::Value into) {
    const double begin = setup_.env->MonotonicSeconds();
    absl::StatusOr<std::unique_ptr<FolderCommit>> folder = place_->NewModel();
    if (!folder.ok()) return folder.status();
    const FileMaker make = [&](const std::string& name) { return (*folder)->NewFile(name); };
    const absl::Status written =
        into == MergeInto::QUANTIZED
            ? QuantizeMerged(setup_, dequantized_->model, make, Showing("quantizing"))
            : WriteInto(into, make);
    console_.EndLive();
    if (!written.ok()) return AsInputError(written);
    absl::StatusOr<ShardedModel> model =
        ShardedModel::Open(setup_.env, (*folder)->temporary_path());
    if (!model.ok()) return model.status();
    seconds_[into] = setup_.env->MonotonicSeconds() - begin;
    // What QUANTIZED is made of takes its time too.
    if (into == MergeInto::QUANTIZED) seconds_[into] += seconds_[MergeInto::DEQUANTIZED];
    return Merged{into, *std::move(folder), *std::move(model)};
  }

  absl::Status WriteInto(MergeInto::Value into, const FileMaker& make) {
    StoredWeights stored(*setup_.model);
    std::unique_ptr<DequantizedWeights> dequantized;
    BaseWeights* base = &stored;
    if (into == MergeInto::DEQUANTIZED) {
      absl::StatusOr<std::unique_ptr<DequantizedWeights>> made =
          DequantizedWeights::Create(context_, base_);
      if (!made.ok()) return made.status();
      dequantized = *std::move(made);
      base = dequantized.get();
    }
    return WriteMergedModel(setup_.env, {*setup_.model, setup_.spec, adapter_, *base},
                            {.progress = Showing("merging")}, make, setup_.device.get());
  }

  absl::Status Score(const Merged& merged) {
    const std::string& name = MergeInto::Value_Name(merged.into);
    ModelForm form = merged.into == MergeInto::QUANTIZED ? base_ : SixteenBitForm(setup_);
    form.name = name;
    form.model = &merged.model;
    absl::StatusOr<Comparison> comparison = Compare(form, absl::StrCat("scoring ", name));
    if (!comparison.ok()) return comparison.status();
    const ModelScore& score = comparison->models[1];
    proto::MergedModelReport* report = report_.add_merged();
    report->set_into(name);
    report->set_bytes(merged.model.total_bytes());
    report->set_seconds(seconds_[merged.into]);
    report->set_loss(score.Loss());
    report->set_loss_increase(score.Loss() - report_.adapter_loss());
    report->set_perplexity(score.Perplexity());
    report->set_kl(score.Kl());
    report->set_top1_agreement(score.Top1Agreement());
    report->set_accuracy(score.Accuracy());
    report->set_within_tolerance(report->loss_increase() <= merge_.max_loss_increase());
    return absl::OkStatus();
  }

  proto::MergedModelReport& Chosen() {
    const std::string& name = MergeInto::Value_Name(merge_.into());
    return *std::find_if(report_.mutable_merged()->begin(), report_.mutable_merged()->end(),
                         [&](const proto::MergedModelReport& m) { return m.into() == name; });
  }

  absl::Status Finish() {
    proto::MergedModelReport& chosen = Chosen();
    const bool accepted = chosen.within_tolerance() || merge_.accept_loss();
    if (accepted) {
      if (absl::Status s = place_->CheckReplaceable(); !s.ok()) return s;
      if (absl::Status s = chosen_->Commit({.step = 0, .world = 1, .job_hash = setup_.job_hash});
          !s.ok()) {
        return AsInputError(s);
      }
      chosen.set_written(true);
      report_.set_output(output_);
    }
    console_.Line(MergeText(report_));
    if (absl::Status s = WriteMergeReport(setup_.env, setup_.job.output_dir(), report_); !s.ok()) {
      return s;
    }
    if (accepted) {
      return GateStatus(ReportGates(
          setup_.job.gates(), {.eval_loss_increase = chosen.loss_increase(), .kl = chosen.kl()},
          &console_));
    }
    return proto::GateMissedError(absl::StrCat(
        "merge.max_loss_increase: merged into ", chosen.into(), " the loss rises by ",
        chosen.loss_increase(), ", more than ", merge_.max_loss_increase(),
        "; nothing was written to ", output_,
        ". Choose another merge.into by the table above, serve the adapter beside its base, or set "
        "merge.accept_loss: true"));
  }

  const Setup& setup_;
  const proto::Merge& merge_;
  Console& console_;
  const StopSignal stop_signal_;
  const std::string output_;
  const StreamContext context_;
  std::unique_ptr<MergeOutput> place_;
  const ModelForm base_;  // that training has, without the adapter
  ModelForm adapted_;     // with it: what all are compared with
  AdapterWeights adapter_;
  std::map<MergeInto::Value, double> seconds_;
  std::optional<Merged> dequantized_;
  std::unique_ptr<FolderCommit> chosen_;
  proto::MergeReport report_;
};

}  // namespace

absl::Status Merge(const Setup& setup, Console* console, StopSignal stop_signal) {
  return MergeRun(setup, console, stop_signal).Run();
}

}  // namespace qlora::engine
