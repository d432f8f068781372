#include "engine/drift/drift_html.h"

#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/plan/plan.h"
#include "engine/report/console.h"
#include "engine/report/html_page.h"

namespace qlora::engine {
namespace {

std::string Fixed(double value, int digits) { return absl::StrFormat("%.*f", digits, value); }
std::string Percent(double share, int digits = 2) { return Fixed(100 * share, digits) + " %"; }

// Infinite where 4 bits hold the weights exactly.
std::string Decibels(double snr) { return std::isinf(snr) ? "∞" : Fixed(snr, 2); }

// Of one sample no error is known.
std::string WithError(const proto::ModelDrift& m) {
  return std::isfinite(m.kl_error()) ? absl::StrCat("± ", Fixed(m.kl_error(), 5), "; ") : "";
}

// What can be told of a difference in loss, with its sign.
std::string Signed(double value) { return absl::StrFormat("%+.5f", value); }

void AddFigures(const proto::DriftReport& r, HtmlPage* page) {
  const proto::ModelDrift& q = r.quantized();
  page->Figures({
      {.label = "KL per token",
       .value = Fixed(q.kl(), 5),
       .note = absl::StrCat(WithError(q), "of the compute type alone ",
                            Fixed(r.sixteen_bits().kl(), 5))},
      {.label = "Loss",
       .value = Fixed(q.loss(), 4),
       .note = absl::StrCat("baseline ", Fixed(r.baseline().loss(), 4))},
      {.label = "Same most likely token", .value = Percent(q.top1_agreement())},
      {.label = "Linears",
       .value = FormatBytes(q.bytes()),
       .note = absl::StrCat(Fixed(q.bits_per_weight(), 2), " bits a weight; baseline ",
                            FormatBytes(r.baseline().bytes()))},
  });
}

HtmlTable ModelTable(std::string caption, const std::vector<const proto::ModelDrift*>& models) {
  HtmlTable table{.caption = std::move(caption),
                  .columns = {{"Model"},
                              {"Bits", true},
                              {"Bytes of linears", true},
                              {"SNR dB", true},
                              {"Loss", true},
                              {"Perplexity", true},
                              {"KL per token", true},
                              {"Same top\u20111", true}}};
  for (const proto::ModelDrift* m : models) {
    table.rows.push_back({m->name(), Fixed(m->bits_per_weight(), 3), FormatBytes(m->bytes()),
                          m->has_snr_db() ? Decibels(m->snr_db()) : "", Fixed(m->loss(), 5),
                          Fixed(m->perplexity(), 3), Fixed(m->kl(), 6),
                          Percent(m->top1_agreement())});
  }
  return table;
}

void AddTypes(const proto::DriftReport& r, HtmlPage* page) {
  page->Heading("Types and block sizes");
  std::vector<const proto::ModelDrift*> models;
  BarChart bars{.title = "KL per token"};
  for (const proto::ModelDrift& m : r.types()) {
    models.push_back(&m);
    bars.bars.push_back({.label = m.name(),
                         .value = m.kl(),
                         .text = Fixed(m.kl(), 6),
                         .marked = m.name() == r.quantized().name()});
  }
  page->Table(ModelTable("", models));
  page->Chart(bars);
  page->Paragraph(absl::StrCat("Published, worst first (Dettmers et al. 2023, table 2): ",
                               absl::StrJoin(r.published_order(), ", "),
                               ". Measured here: ", absl::StrJoin(r.measured_order(), ", "), "."));
  std::vector<std::string> explanations;
  for (const proto::OrderDifference& d : r.differences()) explanations.push_back(d.explanation());
  if (!explanations.empty()) page->List(explanations);
}

void AddRemedies(const proto::DriftReport& r, HtmlPage* page) {
  page->Heading("What takes some of it back");
  HtmlTable table{
      .caption = absl::StrCat("Against ", r.quantized().name()),
      .columns = {
          {"Remedy"}, {"KL saved", true}, {"Loss saved", true}, {"Bytes added", true}, {"How"}}};
  for (const proto::RemedyDrift& remedy : r.remedies()) {
    table.rows.push_back(
        {remedy.name(),
         Percent(r.quantized().kl() > 0 ? remedy.kl_saved() / r.quantized().kl() : 0, 1),
         Signed(remedy.loss_saved()), FormatBytes(remedy.bytes_added()), remedy.how()});
  }
  page->Table(table);
}

void AddLayers(const proto::DriftReport& r, HtmlPage* page) {
  page->Heading("Layer by layer");
  ChartSeries accumulated{.name = "accumulated", .marks = ChartSeries::Marks::kLineAndPoints};
  ChartSeries alone{.name = "this layer alone", .marks = ChartSeries::Marks::kLineAndPoints};
  HtmlTable table{.columns = {{"Layer", true},
                              {"Cosine", true},
                              {"Relative error", true},
                              {"Of this layer alone", true}}};
  for (const proto::LayerDrift& layer : r.layers()) {
    accumulated.points.push_back({.x = double(layer.layer()), .y = layer.relative_error()});
    alone.points.push_back({.x = double(layer.layer()), .y = layer.alone()});
    table.rows.push_back({absl::StrCat(layer.layer()), Fixed(layer.cosine(), 7),
                          Fixed(layer.relative_error(), 6), Fixed(layer.alone(), 6)});
  }
  page->Chart(PlotChart{.title = "Relative error of the residual stream behind each layer",
                        .x_label = "layer",
                        .y_label = "relative error",
                        .whole_x = true,
                        .series = {accumulated, alone}});
  page->Table(table);
}

void AddWeights(const proto::QuantizationReport& r, HtmlPage* page) {
  page->Heading("Weight by weight");
  HtmlTable table{.caption = absl::StrCat(r.quantization(), "; outlier blocks: error over ",
                                          r.outlier_factor(), " times the median"),
                  .columns = {{"Linear"},
                              {"SNR dB", true},
                              {"Max error", true},
                              {"Mean error", true},
                              {"Relative", true},
                              {"Outlier blocks", true}}};
  const auto add = [&](const proto::WeightErrorReport& w) {
    table.rows.push_back(
        {w.name(), Decibels(w.snr_db()), absl::StrFormat("%.3g", w.max_absolute_error()),
         absl::StrFormat("%.3g", w.mean_absolute_error()), Fixed(w.relative_error(), 5),
         absl::StrCat(w.outlier_blocks(), " of ", FormatCount(w.blocks()))});
  };
  for (const proto::WeightErrorReport& w : r.weights()) add(w);
  add(r.all());
  table.marked_rows = {table.rows.size() - 1};
  page->Table(table);
}

void AddSamples(const proto::DriftReport& r, HtmlPage* page) {
  page->Heading("Worst samples");
  HtmlTable table{.columns = {{"Line", true},
                              {"Tokens", true},
                              {"KL per token", true},
                              {"Loss difference", true},
                              {"Beginning"}}};
  for (const proto::SampleDrift& s : r.worst_samples()) {
    table.rows.push_back({absl::StrCat(s.line()), absl::StrCat(s.tokens()), Fixed(s.kl(), 6),
                          Signed(s.loss_difference()), s.text()});
  }
  page->Table(table);
}

}  // namespace

std::string DriftHtml(const proto::DriftReport& r) {
  HtmlPage page("What 4 bits cost",
                absl::StrCat(r.model(), " on ", r.data(), ": ", FormatCount(r.samples()),
                             " samples, ", FormatCount(r.tokens()), " tokens scored",
                             r.adapter().empty() ? "" : ", with the adapter " + r.adapter(), "; ",
                             r.device()));
  AddFigures(r, &page);
  page.Table(ModelTable("", {&r.baseline(), &r.sixteen_bits(), &r.quantized()}));
  if (r.types_size() > 0) AddTypes(r, &page);
  if (r.remedies_size() > 0) AddRemedies(r, &page);
  AddLayers(r, &page);
  AddWeights(r.weights(), &page);
  if (r.worst_samples_size() > 0) AddSamples(r, &page);
  page.Heading("How it was measured");
  page.List(std::vector<std::string>(r.notes().begin(), r.notes().end()));
  return page.Finish();
}

}  // namespace qlora::engine
