#include "engine/report/loss_curve.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/report/html_chart.h"

namespace qlora::engine {

std::string LossCurveSvg(const proto::RunState& state) {
  ChartSeries train{.name = "training", .marks = ChartSeries::Marks::kLine};
  ChartSeries eval{.name = "held out", .marks = ChartSeries::Marks::kPoints};
  const auto add = [](ChartSeries* series, const proto::LogRecord& record, double loss) {
    if (!std::isfinite(loss)) return;
    series->points.push_back({.x = double(record.step()),
                              .y = loss,
                              .note = absl::StrFormat("step %d: %.4f", record.step(), loss)});
  };
  for (const proto::LogRecord& record : state.log_history()) {
    if (record.has_loss()) add(&train, record, record.loss());
    if (record.has_eval_loss()) add(&eval, record, record.eval_loss());
  }
  PlotChart chart{.title = "Loss by step", .x_label = "step", .y_label = "loss", .whole_x = true};
  for (ChartSeries* series : {&train, &eval}) {
    if (series->points.empty()) continue;
    absl::StrAppendFormat(&series->name, ": %.4f to %.4f", series->points.front().y,
                          series->points.back().y);
    chart.series.push_back(std::move(*series));
  }
  return PlotDocument(chart);
}

}  // namespace qlora::engine
