#include "engine/drift/report_drift.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/checkpoint/folder_claim.h"
#include "engine/commands/gates.h"
#include "engine/drift/compare.h"
#include "engine/drift/drift_forms.h"
#include "engine/drift/drift_html.h"
#include "engine/drift/drift_order.h"
#include "engine/drift/drift_text.h"
#include "engine/drift/measure_weights.h"
#include "engine/input_error.h"
#include "engine/io/atomic_file.h"
#include "engine/lora/residual_note.h"
#include "engine/model/prequantized.h"
#include "engine/report/live_progress.h"
#include "engine/report/report_json.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

constexpr char kFolder[] = "drift";
constexpr char kTextFile[] = "drift.txt";
constexpr char kReportFile[] = "drift.json";
constexpr char kPageFile[] = "drift.html";
constexpr char kKeepFile[] = "keep_in_16_bits.textproto";
constexpr char kResidualFolder[] = "residual_init";
// Tokens of a sample shown.
constexpr size_t kSnippetTokens = 24;

// Places of the forms in every comparison.
enum Place : size_t { kBaseline, kSixteenBits, kQuantized };

class DriftRun {
 public:
  DriftRun(const Setup& setup, Console* console)
      : setup_(setup),
        drift_(setup.job.drift()),
        console_(*console),
        folder_(JoinPath(setup.job.output_dir(), kFolder)),
        context_(StreamContextOf(setup)) {}

  absl::Status Run() {
    // Now, not after the work.
    const absl::StatusOr<std::unique_ptr<FolderClaim>> claim =
        FolderClaim::Take(setup_.env, folder_, &console_);
    if (!claim.ok()) return claim.status();
    using Part = absl::Status (DriftRun::*)();
    for (const Part part : {&DriftRun::ReadAdapter, &DriftRun::MeasureWeightErrors,
                            &DriftRun::CompareForms, &DriftRun::CompareKept, &DriftRun::Write}) {
      if (absl::Status s = (this->*part)(); !s.ok()) return s;
    }
    return GateStatus(
        ReportGates(setup_.job.gates(),
                    {.eval_loss_increase = report_.quantized().loss() - report_.baseline().loss(),
                     .kl = report_.quantized().kl()},
                    &console_));
  }

 private:
  absl::Status ReadAdapter() {
    if (drift_.adapter().empty()) return absl::OkStatus();
    absl::StatusOr<AdapterWeights> adapter =
        ReadAdapterWeights(setup_.env, drift_.adapter(), setup_.targets.modules);
    if (!adapter.ok()) return proto::Annotate(AsInputError(adapter.status()), "drift.adapter");
    adapter_ = *std::move(adapter);
    return absl::OkStatus();
  }

  ModelForm WithAdapter(ModelForm form) const {
    if (adapter_) form.adapter = &*adapter_;
    return form;
  }

  bool MeasuresResidual() const { return drift_.compare_remedies() && !adapter_; }

  absl::Status MeasureWeightErrors() {
    specs_ = SpecsOf(setup_);
    std::vector<ModelForm> forms;
    for (const quant::QuantSpec& spec : specs_) forms.push_back(QuantizedForm(setup_, spec));
    ResidualOptions residual;
    if (MeasuresResidual()) {
      absl::StatusOr<LoraTargets> targets =
          ResolveLoraTargets(setup_.job.lora(), WeightRows(setup_.spec));
      if (!targets.ok()) return targets.status();
      residual = {.targets = *std::move(targets),
                  .lora_alpha = setup_.job.lora().lora_alpha(),
                  .use_rslora = setup_.job.lora().use_rslora(),
                  .seed = setup_.job.seed()};
    }
    absl::StatusOr<WeightMeasurements> weights = MeasureWeights(
        context_, forms, {.outlier_factor = drift_.outlier_factor(), .threads = context_.threads},
        residual, LiveProgress(&console_, "weights"));
    console_.EndLive();
    if (!weights.ok()) return weights.status();
    weights_ = *std::move(weights);
    *report_.mutable_weights() =
        QuantizationReportOf(specs_[0], drift_.outlier_factor(), weights_.of_form[0]);
    return absl::OkStatus();
  }

  absl::Status CompareForms() {
    std::vector<ModelForm> forms = {BaselineForm(setup_), SixteenBitForm(setup_)};
    for (const quant::QuantSpec& spec : specs_) forms.push_back(QuantizedForm(setup_, spec));
    for (ModelForm& form : forms) form = WithAdapter(std::move(form));
    if (MeasuresResidual()) {
      forms.push_back(QuantizedForm(setup_, specs_[0]));
      forms.back().adapter = &weights_.residual;
    }
    CompareOptions options{.probe = Probe{.form = kQuantized, .reference = kSixteenBits},
                           .progress = LiveProgress(&console_, "models")};
    absl::StatusOr<Comparison> comparison = Compare(forms, options);
    if (!comparison.ok()) return comparison.status();
    FillHead(*comparison);
    for (size_t f = 0; f < forms.size(); ++f) {
      const bool is_spec = f >= kQuantized && f < kQuantized + specs_.size();
      proto::ModelDrift model = ModelReport(forms[f], comparison->models[f]);
      if (is_spec) model.set_snr_db(SnrOf(f - kQuantized));
      if (f == kBaseline) *report_.mutable_baseline() = model;
      if (f == kSixteenBits) *report_.mutable_sixteen_bits() = model;
      if (f == kQuantized) *report_.mutable_quantized() = model;
      if (is_spec && drift_.compare_types()) *report_.add_types() = model;
    }
    FillLayers(*comparison);
    FillWorstSamples(comparison->models[kBaseline], comparison->models[kQuantized]);
    if (drift_.compare_types()) FillOrder(*comparison);
    if (drift_.compare_remedies()) AddBlockRemedies(forms, *comparison);
    if (MeasuresResidual()) AddResidualRemedy(forms.back(), comparison->models.back());
    RankLayers(*comparison);
    return absl::OkStatus();
  }

  absl::StatusOr<Comparison> Compare(absl::Span<const ModelForm> forms,
                                     const CompareOptions& options) {
    absl::StatusOr<Comparison> comparison =
        CompareModels(context_, forms, setup_.eval_data, *setup_.eval_batches, options);
    console_.EndLive();
    return comparison;
  }

  // The worst layers in 16 bits: a second pass, since the first tells which they are.
  absl::Status CompareKept() {
    std::vector<int> counts;
    if (drift_.compare_remedies()) {
      counts.assign(drift_.keep_worst_layers().begin(), drift_.keep_worst_layers().end());
    }
    if (drift_.has_apply_keep_worst_layers()) counts.push_back(drift_.apply_keep_worst_layers());
    std::sort(counts.begin(), counts.end());
    counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
    std::vector<ModelForm> forms = {WithAdapter(BaselineForm(setup_))};
    for (const int count : counts) {
      if (count > setup_.spec.layers) continue;
      forms.push_back(WithAdapter(KeptForm(setup_, WorstLayers(count))));
    }
    if (forms.size() == 1) return absl::OkStatus();
    absl::StatusOr<Comparison> comparison =
        Compare(forms, {.progress = LiveProgress(&console_, "remedies")});
    if (!comparison.ok()) return comparison.status();
    size_t f = 1;
    for (const int count : counts) {
      if (count > setup_.spec.layers) continue;
      const std::vector<int64_t> layers = WorstLayers(count);
      AddRemedy(absl::StrCat(layers.size() == 1 ? "layer " : "layers ", absl::StrJoin(layers, ", "),
                             " in 16 bits"),
                forms[f], comparison->models[f], 0,
                absl::StrCat("quantization { ", KeepFields(layers), " }"));
      ++f;
    }
    return absl::OkStatus();
  }

  void FillHead(const Comparison& comparison) {
    report_.set_model(setup_.job.model());
    report_.set_data(setup_.eval_source);
    report_.set_samples(int64_t(setup_.eval_data.samples.size()));
    report_.set_tokens(comparison.models[kBaseline].tokens);
    report_.set_adapter(drift_.adapter());
    report_.set_baseline_type(proto::BaselineDtype::Value_Name(drift_.baseline()));
    report_.set_device(setup_.device->info().name);
    report_.set_peak_bytes_planned(comparison.plan_bytes);
    report_.set_parts(comparison.parts);
  }

  double SnrOf(size_t spec) const { return Total(weights_.of_form[spec]).SnrDb(); }

  proto::ModelDrift ModelReport(const ModelForm& form, const ModelScore& score) const {
    proto::ModelDrift report;
    report.set_name(form.name);
    report.set_bytes(LinearBytes(setup_.spec, form));
    report.set_bits_per_weight(8.0 * double(report.bytes()) / double(LinearElements(setup_.spec)));
    report.set_loss(score.Loss());
    report.set_perplexity(score.Perplexity());
    report.set_kl(score.Kl());
    report.set_kl_error(KlError(score));
    report.set_top1_agreement(score.Top1Agreement());
    report.set_accuracy(score.Accuracy());
    return report;
  }

  void FillLayers(const Comparison& comparison) {
    for (int64_t layer = 0; layer < setup_.spec.layers; ++layer) {
      const StreamError& error = comparison.models[kQuantized].layers[layer];
      proto::LayerDrift* report = report_.add_layers();
      report->set_layer(int32_t(layer));
      report->set_cosine(error.Cosine());
      report->set_relative_error(error.RelativeError());
      report->set_alone(comparison.alone[layer].RelativeError());
    }
  }

  std::string Snippet(const Sample& sample) const {
    if (setup_.tokenizer == nullptr) return "";
    const size_t count = std::min(kSnippetTokens, sample.ids.size());
    std::string text = setup_.tokenizer->Decode(absl::MakeConstSpan(sample.ids).first(count), true);
    for (char& c : text) {
      if (absl::ascii_iscntrl(static_cast<unsigned char>(c))) c = ' ';
    }
    return count < sample.ids.size() ? text + " ..." : text;
  }

  void FillWorstSamples(const ModelScore& baseline, const ModelScore& quantized) {
    std::vector<size_t> order(quantized.samples.size());
    std::iota(order.begin(), order.end(), size_t{0});
    const auto kl = [&](size_t i) {
      const SampleScore& s = quantized.samples[i];
      return s.tokens > 0 ? s.kl / double(s.tokens) : 0;
    };
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return kl(a) > kl(b); });
    order.resize(std::min<size_t>(order.size(), drift_.worst_samples()));
    for (const size_t i : order) {
      const SampleScore& s = quantized.samples[i];
      proto::SampleDrift* report = report_.add_worst_samples();
      report->set_line(setup_.eval_data.samples[i].line);
      report->set_tokens(s.tokens);
      report->set_kl(kl(i));
      report->set_loss_difference((s.loss - baseline.samples[i].loss) / double(s.tokens));
      report->set_text(Snippet(setup_.eval_data.samples[i]));
    }
  }

  void FillOrder(const Comparison& comparison) {
    std::vector<RankedType> published;
    for (const quant::QuantSpec& spec : PublishedOrder(specs_[0].block_size)) {
      const size_t i = std::find(specs_.begin(), specs_.end(), spec) - specs_.begin();
      published.push_back({NameOf(spec.type), &comparison.models[kQuantized + i], SnrOf(i)});
    }
    ReportOrder(published, &report_);
  }

  void AddRemedy(const std::string& name, const ModelForm& form, const ModelScore& score,
                 int64_t bytes_beside, const std::string& how) {
    proto::RemedyDrift* remedy = report_.add_remedies();
    remedy->set_name(name);
    *remedy->mutable_model() = ModelReport(form, score);
    remedy->set_kl_saved(report_.quantized().kl() - score.Kl());
    remedy->set_loss_saved(report_.quantized().loss() - score.Loss());
    remedy->set_bytes_added(remedy->model().bytes() - report_.quantized().bytes() + bytes_beside);
    remedy->set_how(how);
  }

  // Measured already, among the block sizes.
  void AddBlockRemedies(absl::Span<const ModelForm> forms, const Comparison& comparison) {
    for (size_t i = 1; i < specs_.size(); ++i) {
      quant::QuantSpec same = specs_[i];
      same.block_size = specs_[0].block_size;
      if (same != specs_[0] || specs_[i].block_size > specs_[0].block_size) continue;
      AddRemedy(absl::StrCat("blocks of ", specs_[i].block_size), forms[kQuantized + i],
                comparison.models[kQuantized + i], 0,
                absl::StrCat("quantization { block_size: ", specs_[i].block_size, " }"));
    }
  }

  void AddResidualRemedy(const ModelForm& form, const ModelScore& score) {
    AddRemedy(absl::StrCat("A and B from the residual, r = ", weights_.residual.r), form, score,
              weights_.residual.Bytes() / 4 * kernels::SizeOf(form.compute),
              "drift { apply_residual_init: true }, then lora.init_from");
    report_.add_notes(absl::StrFormat(
        "The adapter from the residual takes back %.1f %% of the weights' squared error. Its bytes "
        "are those that training's adapter has anyway.",
        100 * weights_.residual_captured));
  }

  void RankLayers(const Comparison& comparison) {
    ranked_.resize(setup_.spec.layers);
    std::iota(ranked_.begin(), ranked_.end(), int64_t{0});
    std::stable_sort(ranked_.begin(), ranked_.end(), [&](int64_t a, int64_t b) {
      return comparison.alone[a].RelativeError() > comparison.alone[b].RelativeError();
    });
  }

  std::vector<int64_t> WorstLayers(int count) const {
    std::vector<int64_t> layers(ranked_.begin(), ranked_.begin() + count);
    std::sort(layers.begin(), layers.end());
    return layers;
  }

  // What is kept already stays so.
  std::string KeepFields(const std::vector<int64_t>& layers) const {
    const auto& given = setup_.job.quantization().keep_in_16_bits();
    std::vector<std::string> fields;
    for (const std::string& name : given) {
      fields.push_back(absl::StrCat("keep_in_16_bits: \"", name, "\""));
    }
    for (const int64_t layer : layers) {
      fields.push_back(absl::StrCat("keep_in_16_bits: \"model.layers.", layer, "\""));
    }
    return absl::StrJoin(fields, " ");
  }

  void AddNotes() {
    report_.add_notes(absl::StrCat(
        "Baseline: weights rounded to ", report_.baseline_type(),
        ", activations and sums in fp32. The line \"", report_.sixteen_bits().name(),
        "\" is what the job's compute type alone costs: below its KL nothing can be told of the 4 "
        "bits. \"Of this layer alone\" is the difference that 4 bits in this layer make to the "
        "baseline's own residual stream."));
    report_.add_notes(absl::StrCat("Samples were taken in ", report_.parts(),
                                   report_.parts() == 1 ? " part" : " parts", "; planned memory ",
                                   FormatBytes(report_.peak_bytes_planned()), "."));
  }

  absl::Status Write() {
    AddNotes();
    const std::string text = DriftText(report_);
    console_.Line("\n" + text);
    absl::StatusOr<std::string> json = ReportJson(report_);
    if (!json.ok()) return json.status();
    if (absl::Status s = WriteFile(kTextFile, text); !s.ok()) return s;
    if (absl::Status s = WriteFile(kReportFile, *json); !s.ok()) return s;
    if (absl::Status s = WriteFile(kPageFile, DriftHtml(report_)); !s.ok()) return s;
    if (drift_.has_apply_keep_worst_layers()) {
      const std::string snippet = absl::StrCat(
          "# The layers that drift most in 4 bits; see ", kReportFile, ".\nquantization { ",
          KeepFields(WorstLayers(drift_.apply_keep_worst_layers())), " }\n");
      if (absl::Status s = WriteFile(kKeepFile, snippet); !s.ok()) return s;
    }
    return drift_.apply_residual_init() ? WriteResidualAdapter() : absl::OkStatus();
  }

  absl::Status WriteFile(const char* name, const std::string& text) {
    const std::string path = JoinPath(folder_, name);
    if (absl::Status s = AtomicWriteFile(setup_.env, path, text); !s.ok()) {
      return proto::IoError(s.message());
    }
    console_.Line(absl::StrCat("written: ", path));
    return absl::OkStatus();
  }

  absl::Status WriteResidualAdapter() {
    const std::string folder = JoinPath(folder_, kResidualFolder);
    absl::Status status = setup_.env->CreateFolders(folder);
    const FileMaker make = [&](const std::string& name) {
      return NewAtomicFile(setup_.env, JoinPath(folder, name));
    };
    // The note first: the adapter is never there without it.
    if (status.ok()) {
      status = WriteResidualNote(
          make, {.base_sha256 = setup_.base_hash,
                 .quantization = BaseFields(specs_[0], setup_.spec.kept_in_16_bits)});
    }
    if (status.ok()) {
      status = WriteAdapterWeights(setup_.env, folder, weights_.residual,
                                   setup_.job.lora().lora_dropout(), setup_.job.model());
    }
    if (!status.ok()) return proto::IoError(status.message());
    console_.Line(
        absl::StrCat("written: ", folder, ", for lora.init_from. ", ResidualWarning(folder)));
    return absl::OkStatus();
  }

  const Setup& setup_;
  const proto::Drift& drift_;
  Console& console_;
  const std::string folder_;
  const StreamContext context_;
  std::optional<AdapterWeights> adapter_;
  std::vector<quant::QuantSpec> specs_;
  WeightMeasurements weights_;
  std::vector<int64_t> ranked_;  // layers, worst first
  proto::DriftReport report_;
};

}  // namespace

absl::Status ReportDrift(const Setup& setup, Console* console) {
  return DriftRun(setup, console).Run();
}

}  // namespace qlora::engine
