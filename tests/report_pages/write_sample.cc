// write_sample FILE: a report page with everything that pages can hold, over texts that are long,
// without a place to break, wide, and hostile.

#include <cmath>
#include <cstdio>
#include <fstream>

#include "engine/report/html_page.h"

namespace qlora::engine {
namespace {

const std::string kLong(180, 'W');
const std::string kHostile =
    "</style></svg><script>document.body.textContent = 'obeyed'</script>\"'&\u202E\x01\xff";
const std::string kWide = "量化把每个权重的十六位变成四位所失去的东西要在自己的数据上测量才知道";

ChartSeries Decay(const std::string& name, double rate, ChartSeries::Marks marks) {
  ChartSeries series{.name = name, .marks = marks};
  for (int i = 0; i <= 40; ++i) {
    series.points.push_back({double(i * 25), 0.4 + 3 * std::exp(-rate * i)});
  }
  return series;
}

std::string SamplePage() {
  HtmlPage page("Is a small adapter enough? " + kHostile, "job orders.textproto, " + kWide);
  page.Paragraph("Held-out loss falls from 2.1561 to 1.9940; 4 bits cost 0.0040 of it.");
  page.Figures({{.label = "held-out loss", .value = "1.9940", .note = "2.1561 before training"},
                {.label = "max_kl",
                 .value = "0.021",
                 .note = "0.050 allowed",
                 .tone = KeyFigure::Tone::kGood},
                {.label = "min_exact_match",
                 .value = "61.0 %",
                 .note = "80 % asked for",
                 .tone = KeyFigure::Tone::kBad},
                {.label = kLong.substr(0, 40), .value = kLong.substr(0, 12), .note = kWide}});
  page.Heading("Loss");
  PlotChart losses{.title = "Loss by step", .x_label = "step", .y_label = "loss", .whole_x = true};
  for (int i = 0; i < 8; ++i) {
    losses.series.push_back(Decay(i == 2 ? kLong : "rank " + std::to_string(2 << i),
                                  0.05 + 0.02 * i, ChartSeries::Marks::kLine));
  }
  page.Chart(losses);
  page.Chart(
      PlotChart{.title = "Error by layer",
                .x_label = "layer",
                .y_label = "relative error",
                .y_scale = AxisScale::kLog10,
                .series = {Decay("of activations", 0.2, ChartSeries::Marks::kLineAndPoints)}});
  page.Chart(
      PlotChart{.title = "Loss by rank",
                .x_label = "r",
                .y_label = "held-out loss",
                .x_scale = AxisScale::kLog2,
                .series = {{"r",
                            ChartSeries::Marks::kPoints,
                            {{4, 2.01}, {8, 1.99}, {16, 1.985}, {32, 1.984}, {64, 1.9841}}}}});
  page.Chart(BarChart{.title = "Memory",
                      .bars = {{"frozen base", 3.5e9, "3.3 GiB", true},
                               {"activations", 2e9, "1.9 GiB"},
                               {kLong, 1e9, kLong},
                               {kWide, 1e6, "1.0 MiB"}}});
  page.Heading("Tables");
  HtmlTable table{.caption = "Types", .marked_rows = {0}};
  table.columns = {{"type"},
                   {"bits per weight", true},
                   {"SNR, dB", true},
                   {"loss", true},
                   {"perplexity", true},
                   {"KL", true},
                   {"top-1 agreement", true}};
  table.rows = {
      {"NF4, double quantization", "4.127", "20.7", "1.9940", "7.345", "0.0211", "93.1 %"},
      {kHostile, "4.500", "20.8", "1.9938", "7.343", "0.0209", "93.2 %"},
      {kLong, "4", "18.9", "2.0114", "7.474", "0.0350", "91.0 %"}};
  page.Table(table);
  page.List({"keep layers 0 and 31 in 16 bits: 96 MiB", kLong});
  page.Preformatted("training {\n  learning_rate: 2e-4\n}\n" + kLong);
  return page.Finish();
}

}  // namespace
}  // namespace qlora::engine

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: write_sample FILE\n");
    return 2;
  }
  std::ofstream file(argv[1], std::ios::binary);
  file << qlora::engine::SamplePage();
  return file.good() ? 0 : 1;
}
