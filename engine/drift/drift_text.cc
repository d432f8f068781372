#include "engine/drift/drift_text.h"

#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/plan/plan.h"
#include "engine/report/console.h"

namespace qlora::engine {
namespace {

// Weights shown one by one at most.
constexpr int kShownWeights = 60;

void AppendWeight(const proto::WeightErrorReport& w, std::string* text) {
  absl::StrAppendFormat(text, "  %-44s %8.2f %10.3g %10.3g %9.5f %9d of %d\n", w.name(), w.snr_db(),
                        w.max_absolute_error(), w.mean_absolute_error(), w.relative_error(),
                        w.outlier_blocks(), w.blocks());
}

// The same linear of all layers: "*.mlp.down_proj".
std::string KindOfModule(const std::string& module) {
  constexpr char kLayers[] = "model.layers.";
  const size_t dot = module.find('.', sizeof(kLayers) - 1);
  return absl::StrCat("*.", module.substr(dot + 1));
}

void AppendModel(const proto::ModelDrift& m, std::string* text) {
  absl::StrAppendFormat(text, "  %-44s %6.3f %11s %8s %10.5f %10.6f %8.3f %%\n", m.name(),
                        m.bits_per_weight(), FormatBytes(m.bytes()),
                        m.has_snr_db() ? absl::StrFormat("%.2f", m.snr_db()) : "-", m.loss(),
                        m.kl(), 100 * m.top1_agreement());
}

constexpr char kModelHeader[] =
    "                                                 bits   of linears  SNR dB       loss   KL "
    "per "
    "token  same top-1\n";

}  // namespace

const char* NameOf(quant::QuantType type) {
  switch (type) {
    case quant::QuantType::kNf4:
      return "NF4";
    case quant::QuantType::kFp4E2M1:
      return "FP4 E2M1";
    case quant::QuantType::kFp4E3M0:
      return "FP4 E3M0";
    case quant::QuantType::kInt4:
      break;
  }
  return "INT4";
}

std::string Describe(const quant::QuantSpec& spec) {
  return absl::StrCat(NameOf(spec.type), spec.double_quant ? ", double quantization" : "",
                      ", blocks of ", spec.block_size);
}

proto::WeightErrorReport WeightErrorReportOf(const std::string& name, const WeightError& error) {
  proto::WeightErrorReport report;
  report.set_name(name);
  report.set_elements(error.elements);
  report.set_bytes(error.bytes);
  report.set_bits_per_weight(error.BitsPerWeight());
  report.set_snr_db(error.SnrDb());
  report.set_max_absolute_error(error.max_absolute);
  report.set_mean_absolute_error(error.MeanAbsolute());
  report.set_relative_error(error.RelativeError());
  report.set_blocks(error.blocks);
  report.set_outlier_blocks(error.outlier_blocks);
  return report;
}

proto::QuantizationReport QuantizationReportOf(const quant::QuantSpec& spec, double outlier_factor,
                                               const std::vector<NamedWeightError>& errors) {
  proto::QuantizationReport report;
  report.set_quantization(Describe(spec));
  report.set_outlier_factor(outlier_factor);
  for (const NamedWeightError& e : errors) {
    *report.add_weights() = WeightErrorReportOf(e.module, e.error);
  }
  *report.mutable_all() = WeightErrorReportOf("all", Total(errors));
  return report;
}

std::string WeightTable(const proto::QuantizationReport& report) {
  std::string text = absl::StrCat(
      report.quantization(), ": ",
      absl::StrFormat("%.3f bits per weight, %s\n", report.all().bits_per_weight(),
                      FormatBytes(report.all().bytes())),
      "                                                 SNR dB  max error mean error  relative  "
      "outlier blocks\n");
  if (report.weights_size() <= kShownWeights) {
    for (const proto::WeightErrorReport& w : report.weights()) AppendWeight(w, &text);
  } else {
    // The worst of each kind: one line a linear of the layer.
    std::map<std::string, const proto::WeightErrorReport*> worst;
    for (const proto::WeightErrorReport& w : report.weights()) {
      const proto::WeightErrorReport*& kept = worst[KindOfModule(w.name())];
      if (kept == nullptr || w.snr_db() < kept->snr_db()) kept = &w;
    }
    absl::StrAppend(&text, "  the worst of each kind, of ", report.weights_size(), ":\n");
    for (const auto& [kind, w] : worst) AppendWeight(*w, &text);
  }
  AppendWeight(report.all(), &text);
  return text;
}

std::string DriftText(const proto::DriftReport& r) {
  std::string text = absl::StrFormat(
      "drift of %s on %s: %s samples, %s tokens scored; baseline: weights in %s, activations and "
      "sums in fp32%s\n\n",
      r.model(), r.data(), FormatCount(r.samples()), FormatCount(r.tokens()), r.baseline_type(),
      r.adapter().empty() ? "" : absl::StrCat("; all carry the adapter ", r.adapter()));
  absl::StrAppend(&text, WeightTable(r.weights()), "\n");
  absl::StrAppend(&text, "residual stream behind each layer, against the baseline's\n",
                  "  layer      cosine    relative error    of this layer alone\n");
  for (const proto::LayerDrift& layer : r.layers()) {
    absl::StrAppendFormat(&text, "  %5d  %10.7f  %16.6f  %21.6f\n", layer.layer(), layer.cosine(),
                          layer.relative_error(), layer.alone());
  }
  absl::StrAppend(&text, "\nmodels\n", kModelHeader);
  AppendModel(r.baseline(), &text);
  AppendModel(r.sixteen_bits(), &text);
  AppendModel(r.quantized(), &text);
  if (r.types_size() > 0) {
    absl::StrAppend(&text, "\ntypes and block sizes\n", kModelHeader);
    for (const proto::ModelDrift& m : r.types()) AppendModel(m, &text);
    absl::StrAppend(&text,
                    "published order, worst first: ", absl::StrJoin(r.published_order(), ", "),
                    " (Dettmers et al. 2023, table 2)\nmeasured here:                ",
                    absl::StrJoin(r.measured_order(), ", "), "\n");
    for (const proto::OrderDifference& d : r.differences()) {
      absl::StrAppend(&text, "  ", d.explanation(), "\n");
    }
  }
  if (r.remedies_size() > 0) {
    absl::StrAppend(
        &text, "\nremedies, against ", r.quantized().name(),
        "\n                                                 KL saved   loss saved       "
        "bytes\n");
    for (const proto::RemedyDrift& remedy : r.remedies()) {
      absl::StrAppendFormat(
          &text, "  %-42s %6.1f %%  %11.5f  %10s  %s\n", remedy.name(),
          r.quantized().kl() > 0 ? 100 * remedy.kl_saved() / r.quantized().kl() : 0,
          remedy.loss_saved(),
          absl::StrCat(remedy.bytes_added() < 0 ? "-" : "+",
                       FormatBytes(std::abs(remedy.bytes_added()))),
          remedy.how());
    }
  }
  if (r.worst_samples_size() > 0) {
    absl::StrAppend(&text, "\nworst samples\n    line  tokens  KL per token  loss difference\n");
    for (const proto::SampleDrift& s : r.worst_samples()) {
      absl::StrAppendFormat(&text, "  %6d  %6d  %12.6f  %+15.5f  %s\n", s.line(), s.tokens(),
                            s.kl(), s.loss_difference(), s.text());
    }
  }
  return absl::StrCat(text, "\n", absl::StrJoin(r.notes(), "\n"), "\n");
}

}  // namespace qlora::engine
