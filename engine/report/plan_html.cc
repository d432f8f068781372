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
  for (const Report::Alternative& change : report.changes()) {
    changes.rows.push_back({change.change(), FormatBytes(change.device_bytes()),
                            absl::StrFormat("%.2f ×", change.relative_time())});
  }
  page->Table(changes);
}

// A point for each run on this device: on the line a prediction was right.
void AddPastRuns(const Report::Time& time, HtmlPage* page) {
  if (time.past_runs().empty()) return;
  page->Paragraph(absl::StrFormat(
      "Predictions of %d run%s on this device were %.0f %% off on average.", time.past_runs_size(),
      time.past_runs_size() == 1 ? "" : "s", 100 * time.past_error()));
  PlotChart chart{.title = "Runs on this device",
                  .x_label = "predicted tokens per second",
                  .y_label = "measured",
                  .x_scale = AxisScale::kLog10,
                  .y_scale = AxisScale::kLog10};
  ChartSeries runs{.name = "runs", .marks = ChartSeries::Marks::kPoints};
  ChartSeries right{.name = "as predicted", .marks = ChartSeries::Marks::kLine};
  double least = time.past_runs(0).tokens_per_second(), most = least;
  for (const proto::SpeedRecord& run : time.past_runs()) {
    const double predicted = run.predicted_tokens_per_second();
    runs.points.push_back(
        {predicted, run.tokens_per_second(), absl::StrFormat("%s, %s", run.model(), run.mode())});
    least = std::min({least, predicted, run.tokens_per_second()});
    most = std::max({most, predicted, run.tokens_per_second()});
  }
  right.points = {{least / 2, least / 2, ""}, {most * 2, most * 2, ""}};
  chart.series = {std::move(right), std::move(runs)};
  page->Chart(chart);
}

void AddTime(const Report& report, HtmlPage* page) {
  const Report::Time& time = report.time();
  page->Heading("Time");
  page->Paragraph(absl::StrFormat(
      "A step of %s tokens takes %.4g s at the rates of this device: %.4g TFLOP/s and %.4g GB/s "
      "(%s). Most of it is bound by %s.",
      FormatCount(time.tokens_per_step()), time.speed().step_seconds(),
      time.flops_per_second() / 1e12, time.memory_bytes_per_second() / 1e9, time.rates_source(),
      time.bound()));
  const auto bar = [](const char* name, double seconds) {
    return BarChart::Bar{
        .label = name, .value = seconds, .text = absl::StrFormat("%.4g s", seconds)};
  };
  page->Chart(
      BarChart{.title = "A step by what bounds it",
               .bars = {bar("compute", time.compute_seconds()),
                        bar("memory", time.memory_seconds()), bar("host link", time.link_seconds()),
                        bar("communication", time.speed().communication_seconds())}});
  PlotChart scaling{.title = "Speed by number of ranks",
                    .x_label = "ranks",
                    .y_label = "tokens per second",
                    .x_scale = AxisScale::kLog2,
                    .y_scale = AxisScale::kLog10};
  ChartSeries predicted{.name = "predicted", .marks = ChartSeries::Marks::kLineAndPoints};
  ChartSeries ideal{.name = "without communication"};
  for (const Report::Speed& s : report.scaling()) {
    predicted.points.push_back({double(s.ranks()), s.tokens_per_second(), ""});
    ideal.points.push_back({double(s.ranks()), s.tokens_per_second() / s.efficiency(), ""});
  }
  scaling.series = {predicted, ideal};
  if (!report.scaling().empty()) page->Chart(scaling);
  AddPastRuns(time, page);
}

void AddModes(const Report::Economics& e, HtmlPage* page) {
  if (e.modes().empty()) return;
  HtmlTable modes{.caption = "The same job in each mode, by plan",
                  .columns = {{"mode"},
                              {"fits"},
                              {"memory", true},
                              {"time", true},
                              {"trained parameters", true},
                              {"result", true}}};
  for (const Report::Alternative& mode : e.modes()) {
    modes.rows.push_back(
        {mode.change(), mode.fits() ? "yes" : "no", FormatBytes(mode.device_bytes()),
         absl::StrFormat("%.2f ×", mode.relative_time()), FormatCount(mode.trained().parameters()),
         FormatBytes(mode.trained().bytes())});
  }
  page->Table(modes);
}

void AddMerged(const Report::Economics& e, HtmlPage* page) {
  if (e.merged().empty()) return;
  HtmlTable table{.caption = "Merging, measured",
                  .columns = {{"into"}, {"seconds", true}, {"loss", true}, {"size", true}}};
  for (const proto::MergedModelReport& merged : e.merged()) {
    table.rows.push_back({merged.into(), absl::StrFormat("%.3g", merged.seconds()),
                          absl::StrFormat("%+.4f", merged.loss_increase()),
                          FormatBytes(merged.bytes())});
  }
  page->Table(table);
}

void AddTrained(const char* title, const google::protobuf::RepeatedPtrField<Report::Trained>& parts,
                HtmlPage* page) {
  if (parts.empty()) return;
  BarChart bars{.title = title};
  for (const Report::Trained& part : parts) {
    bars.bars.push_back({.label = absl::StrCat(part.name(), " · ", part.modules(), " modules"),
                         .value = double(part.parameters()),
                         .text = absl::StrFormat("%s (%.3g %%)", FormatCount(part.parameters()),
                                                 100 * part.share())});
  }
  page->Chart(bars);
}

std::string Price(double amount, const Report::Economics& e) {
  return absl::StrFormat("%.4g %s", amount, e.currency());
}

void AddEconomics(const Report::Economics& e, HtmlPage* page) {
  page->Heading("What it costs and saves");
  std::vector<KeyFigure> figures = {
      {.label = "trained",
       .value = absl::StrFormat("%.3g %%", 100 * e.trained().share()),
       .note = absl::StrCat(FormatCount(e.trained().parameters()), " parameters")},
      {.label = "result",
       .value = FormatBytes(e.trained().bytes()),
       .note = absl::StrCat("the model in 16 bits: ", FormatBytes(e.model_bytes()))}};
  if (e.training_hours() > 0) {
    figures.push_back({.label = "training",
                       .value = absl::StrFormat("%.3g h", e.training_hours()),
                       .note = e.training_cost() > 0 ? Price(e.training_cost(), e) : ""});
  }
  if (e.prompt_tokens_with() > 0) {
    figures.push_back(
        {.label = "tokens saved per call",
         .value = absl::StrFormat("%.1f", e.prompt_tokens_with() - e.prompt_tokens_without()),
         .note = absl::StrFormat("of %.1f with the instruction", e.prompt_tokens_with())});
  }
  if (e.tokens_saved_per_day() > 0) {
    const std::string tokens = absl::StrFormat("%.4g tokens", e.tokens_saved_per_day());
    const bool is_priced = e.saved_per_day() > 0;
    figures.push_back({.label = "saved per day",
                       .value = is_priced ? Price(e.saved_per_day(), e) : tokens,
                       .note = is_priced ? tokens : ""});
  }
  if (e.break_even_days() > 0) {
    figures.push_back(
        {.label = "paid back after", .value = absl::StrFormat("%.3g days", e.break_even_days())});
  }
  page->Figures(figures);
  if (!e.prompts_uncounted().empty()) page->Paragraph(e.prompts_uncounted());
  AddModes(e, page);
  AddMerged(e, page);
  AddTrained("Trained parameters by target", e.targets(), page);
  AddTrained("Trained parameters by rank", e.ranks(), page);
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
       .value = absl::StrFormat("%.4g tokens/s", report.time().speed().tokens_per_second()),
       .note = absl::StrCat(report.time().speed().ranks(),
                            report.time().speed().ranks() == 1 ? " rank" : " ranks")}};
  if (report.time().run_seconds() > 0) {
    figures.push_back(
        {.label = "the whole run", .value = FormatDuration(report.time().run_seconds())});
  }
  if (report.largest_sequence() > 0) {
    figures.push_back({.label = "longest sequence", .value = LargestSequenceText(report)});
    figures.push_back({.label = "largest micro-batch", .value = LargestBatchText(report)});
  }
  page.Figures(figures);
  AddMemory(report, &page);
  AddTime(report, &page);
  AddEconomics(report.economics(), &page);
  return page.Finish();
}

}  // namespace qlora::engine
