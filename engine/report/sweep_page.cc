#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/plan/plan.h"
#include "engine/report/html_page.h"
#include "engine/report/sweep_report.h"

namespace qlora::engine {
namespace {

using proto::SweepReport;

std::string OrDash(bool has, double value) { return has ? absl::StrFormat("%.4f", value) : "–"; }

HtmlTable AdapterTable(const SweepReport& report) {
  HtmlTable table{.caption = "The adapters; in bold the smallest rank that is good enough",
                  .columns = {{"adapter"},
                              {"rank", true},
                              {"learning rate", true},
                              {"alpha", true},
                              {"size", true},
                              {"steps", true},
                              {"training loss", true},
                              {"held-out loss", true},
                              {"exact", true},
                              {"enough"}}};
  for (const SweepReport::Adapter& a : report.adapter()) {
    if (!report.smallest().empty() && a.name() == report.smallest()) {
      table.marked_rows.push_back(table.rows.size());
    }
    table.rows.push_back(
        {a.name(), absl::StrCat(a.r()), absl::StrFormat("%.3g", a.learning_rate()),
         absl::StrFormat("%g", a.lora_alpha()), FormatBytes(a.adapter_bytes()),
         absl::StrCat(a.steps(), "/", a.total_steps()), OrDash(a.has_train_loss(), a.train_loss()),
         OrDash(a.has_eval_loss(), a.eval_loss()),
         a.has_exact_match() ? absl::StrFormat("%.1f %%", 100 * a.exact_match()) : "–",
         !IsTrained(a)     ? a.not_trained()
         : MissesGate(a)   ? "no: gate"
         : a.good_enough() ? "yes"
                           : "no"});
  }
  return table;
}

// Every adapter a point; the line joins the best of each rank.
PlotChart RankChart(const SweepReport& report) {
  const bool exact = report.metric() == SweepReport::EXACT_MATCH;
  PlotChart chart{
      .title = exact ? "Answers right to the letter over the rank" : "Held-out loss over the rank",
      .x_label = "rank",
      .y_label = exact ? "share of answers" : "held-out loss",
      .x_scale = AxisScale::kLog2};
  ChartSeries best{.name = "best of each rank", .marks = ChartSeries::Marks::kLine};
  ChartSeries all{.name = "adapters", .marks = ChartSeries::Marks::kPoints};
  std::map<int, double> by_rank;
  for (const SweepReport::Adapter& a : report.adapter()) {
    const std::optional<double> figure = MetricOf(a, report.metric());
    if (!figure || !IsTrained(a)) continue;
    all.points.push_back({double(a.r()), *figure, absl::StrFormat("%s: %.4f", a.name(), *figure)});
    const auto [at, is_new] = by_rank.emplace(a.r(), *figure);
    if (!is_new && Gain(at->second, *figure, report.metric()) > 0) at->second = *figure;
  }
  for (const auto& [rank, figure] : by_rank) best.points.push_back({double(rank), figure});
  chart.series = {std::move(best), std::move(all)};
  return chart;
}

PlotChart StepChart(const SweepReport& report) {
  PlotChart chart{.title = "Held-out loss over the steps",
                  .x_label = "step",
                  .y_label = "held-out loss",
                  .whole_x = true};
  for (const SweepReport::Adapter& a : report.adapter()) {
    ChartSeries series{.name = a.name(), .marks = ChartSeries::Marks::kLineAndPoints};
    for (const SweepReport::Point& point : a.eval_history()) {
      series.points.push_back({double(point.step()), point.value()});
    }
    if (!series.points.empty()) chart.series.push_back(std::move(series));
  }
  return chart;
}

void AddGates(const SweepReport& report, HtmlPage* page) {
  std::vector<std::string> lines;
  for (const SweepReport::Adapter& a : report.adapter()) {
    for (const SweepReport::Gate& gate : a.gates()) {
      lines.push_back(absl::StrCat(a.name(), ": ", gate.text()));
    }
  }
  if (lines.empty()) return;
  page->Heading("Gates");
  page->List(lines);
}

}  // namespace

std::string SweepPage(const SweepReport& report) {
  HtmlPage page("Sweep", absl::StrCat(report.adapter_size(), " adapters over one base"));
  page.Paragraph(report.verdict());
  if (!report.compared_by().empty()) page.Paragraph(report.compared_by());
  for (const SweepReport::Adapter& a : report.adapter()) {
    if (report.smallest().empty() || a.name() != report.smallest()) continue;
    const double figure = *MetricOf(a, report.metric());
    const bool exact = report.metric() == SweepReport::EXACT_MATCH;
    page.Figures({{{.label = "smallest rank that is enough", .value = absl::StrCat(a.r())},
                   {.label = exact ? "answers exact" : "held-out loss",
                    .value = exact ? absl::StrFormat("%.1f %%", 100 * figure)
                                   : absl::StrFormat("%.4f", figure)},
                   {.label = "adapter", .value = FormatBytes(a.adapter_bytes())}}});
  }
  if (report.metric() != SweepReport::NONE) page.Chart(RankChart(report));
  const PlotChart steps = StepChart(report);
  if (!steps.series.empty()) page.Chart(steps);
  page.Table(AdapterTable(report));
  AddGates(report, &page);
  return page.Finish();
}

}  // namespace qlora::engine
