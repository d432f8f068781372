#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/plan/plan.h"
#include "engine/report/console.h"
#include "engine/report/html_page.h"
#include "engine/report/plan_output.h"

namespace qlora::engine {
namespace {

using Report = proto::PlanReport;

void AddMemory(const Report& report, HtmlPage* page) {
  page->Heading("Memory");
  BarChart bars{.title = "What the run keeps, on each rank"};
  for (const Report::Item& item : report.items()) {
    bars.bars.push_back({.label = absl::StrCat(item.name(), " · ", item.memory()),
                         .value = double(item.bytes()),
                         .text = FormatBytes(item.bytes()),
                         .marked = item.memory() == "device"});
  }
  page->Chart(bars);
  page->List(std::vector<std::string>(report.choices().begin(), report.choices().end()));
  if (report.changes().empty()) return;
  HtmlTable changes{.caption = "Changes that make it fit, the cheapest in time first",
                    .columns = {{"change"}, {"memory", true}, {"time for a token", true}}};
  for (const Report::Change& change : report.changes()) {
    changes.rows.push_back({change.change(), FormatBytes(change.bytes()),
                            absl::StrFormat("%.2f ×", change.relative_time())});
  }
  page->Table(changes);
}

void AddTime(const Report& report, HtmlPage* page) {
  const Report::Time& time = report.time();
  page->Heading("Time");
  page->Paragraph(absl::StrFormat(
      "A step of %s tokens takes %.3g s at the rates of this device: %.4g TFLOP/s and %.4g GB/s "
      "(%s). Most of it is bound by %s.",
      FormatCount(time.tokens_per_step()), time.step_seconds(), time.flops_per_second() / 1e12,
      time.memory_bytes_per_second() / 1e9, time.rates_source(), time.bound()));
  if (report.has_recorded()) {
    page->Paragraph(absl::StrFormat(
        "The last run here made %.4g tokens/s where %.4g were predicted: an error of %+.0f %%.",
        report.recorded().tokens_per_second(), report.recorded().predicted_tokens_per_second(),
        100 * report.recorded().error()));
  }
  const auto bar = [](const char* name, double seconds) {
    return BarChart::Bar{
        .label = name, .value = seconds, .text = absl::StrFormat("%.3g s", seconds)};
  };
  page->Chart(BarChart{
      .title = "A step by what bounds it",
      .bars = {bar("compute", time.compute_seconds()), bar("memory", time.memory_seconds()),
               bar("communication", time.communication_seconds())}});
  PlotChart scaling{.title = "Speed by number of ranks",
                    .x_label = "ranks",
                    .y_label = "tokens per second",
                    .x_scale = AxisScale::kLog2,
                    .y_scale = AxisScale::kLog10};
  ChartSeries predicted{.name = "predicted", .marks = ChartSeries::Marks::kLineAndPoints};
  ChartSeries ideal{.name = "without communication"};
  for (const Report::Scale& s : report.scaling()) {
    predicted.points.push_back({double(s.ranks()), s.tokens_per_second(), ""});
    ideal.points.push_back({double(s.ranks()), s.tokens_per_second() / s.efficiency(), ""});
  }
  scaling.series = {predicted, ideal};
  page->Chart(scaling);
}

void AddModes(const Report::Economics& e, HtmlPage* page) {
  if (e.modes().empty()) return;
  HtmlTable modes{.caption = "The same job in each mode, by plan",
                  .columns = {{"mode"},
                              {"fits"},
                              {"memory", true},
                              {"s per step", true},
                              {"trained parameters", true},
                              {"result", true}}};
  for (const Report::ModeCost& mode : e.modes()) {
    modes.rows.push_back({mode.mode(), mode.fits() ? "yes" : "no", FormatBytes(mode.device_bytes()),
                          absl::StrFormat("%.3g", mode.seconds_per_step()),
                          FormatCount(mode.trained_parameters()),
                          FormatBytes(mode.result_bytes())});
  }
  page->Table(modes);
}

void AddEconomics(const Report::Economics& e, HtmlPage* page) {
  page->Heading("What it costs and saves");
  std::vector<KeyFigure> figures = {
      {.label = "trained",
       .value = absl::StrFormat(
           "%.3g %%", 100.0 * double(e.trained_parameters()) / double(e.model_parameters())),
       .note = absl::StrCat(FormatCount(e.trained_parameters()), " of ",
                            FormatCount(e.model_parameters()), " parameters")}};
  if (e.adapter_bytes() > 0) {
    figures.push_back(
        {.label = "adapter",
         .value = FormatBytes(e.adapter_bytes()),
         .note = absl::StrCat("the model in 16 bits: ", FormatBytes(e.model_bytes()))});
  }
  if (e.training_hours() > 0) {
    figures.push_back({.label = "training",
                       .value = absl::StrFormat("%.3g h", e.training_hours()),
                       .note = absl::StrFormat("%.4g %s", e.training_cost(), e.currency())});
  }
  if (e.prompt_tokens_with() > 0) {
    figures.push_back(
        {.label = "tokens saved per call",
         .value = absl::StrFormat("%.1f", e.prompt_tokens_with() - e.prompt_tokens_without()),
         .note = absl::StrFormat("of %.1f with the instruction", e.prompt_tokens_with())});
    figures.push_back({.label = "saved per day",
                       .value = absl::StrFormat("%.4g %s", e.saved_per_day(), e.currency()),
                       .note = absl::StrFormat("%.4g tokens", e.tokens_saved_per_day())});
  }
  if (e.break_even_days() > 0) {
    figures.push_back(
        {.label = "paid back after", .value = absl::StrFormat("%.3g days", e.break_even_days())});
  }
  page->Figures(figures);
  AddModes(e, page);
  if (e.targets().empty()) return;
  BarChart targets{.title = "Trained parameters by target"};
  for (const Report::Target& target : e.targets()) {
    targets.bars.push_back(
        {.label = absl::StrCat(target.name(), " · ", target.modules(), " modules"),
         .value = double(target.parameters()),
         .text = absl::StrFormat("%s (%.3g %%)", FormatCount(target.parameters()),
                                 100 * target.share())});
  }
  page->Chart(targets);
}

}  // namespace

std::string PlanReportHtml(const Report& report) {
  HtmlPage page("What training would take",
                absl::StrCat(report.model(), " · ", FormatCount(report.parameters()),
                             " parameters · ", report.mode(), " · ", report.device()));
  std::vector<KeyFigure> figures = {
      {.label = "memory",
       .value = FormatBytes(report.device_bytes()),
       .note = absl::StrCat("of ", FormatBytes(report.limit_bytes()), ", ", report.limit_source()),
       .tone = report.fits() ? KeyFigure::Tone::kGood : KeyFigure::Tone::kBad},
      {.label = "speed",
       .value = absl::StrFormat("%.4g tokens/s", report.time().tokens_per_second()),
       .note = absl::StrCat(report.world_size(), report.world_size() == 1 ? " rank" : " ranks")}};
  if (report.time().run_seconds() > 0) {
    figures.push_back(
        {.label = "the whole run", .value = FormatDuration(report.time().run_seconds())});
  }
  if (report.largest_sequence() > 0) {
    figures.push_back({.label = "longest sequence",
                       .value = absl::StrCat(FormatCount(report.largest_sequence()), " tokens")});
    figures.push_back({.label = "largest micro-batch",
                       .value = absl::StrCat(FormatCount(report.largest_batch()), " rows")});
  }
  page.Figures(figures);
  AddMemory(report, &page);
  AddTime(report, &page);
  AddEconomics(report.economics(), &page);
  return page.Finish();
}

}  // namespace qlora::engine
