#include "engine/report/html_chart.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/report/html_text.h"

namespace qlora::engine {
namespace {

constexpr double kFontSize = 13;

// Okabe and Ito, "Color Universal Design", 2008; blue and green a little lighter on a dark ground.
struct Colors {
  const char *light, *dark;
};
constexpr Colors kSeriesColors[] = {{"#0072b2", "#56a8e0"}, {"#d55e00", "#f0803c"},
                                    {"#009e73", "#2bbd94"}, {"#cc79a7", "#dd8fba"},
                                    {"#e69f00", "#e8b23a"}, {"#56b4e9", "#8fd0f5"}};
constexpr Colors kInk = {"#3b4048", "#c4c9d1"}, kGrid = {"#e3e6ea", "#30353d"},
                 kFrame = {"#9aa1ab", "#6b727d"}, kGround = {"#ffffff", "#15181c"},
                 kBar = {"#9dbfd8", "#45657f"};

std::string Rules(const char* Colors::*tone) {
  std::string css = absl::StrCat(
      ".chart text{fill:", kInk.*tone, "}.chart .grid{stroke:", kGrid.*tone,
      "}.chart .frame{stroke:", kFrame.*tone, "}.chart .ground{fill:", kGround.*tone,
      "}.chart .bar{fill:", kBar.*tone, "}.chart .marked{fill:", kSeriesColors[0].*tone, "}\n");
  for (size_t i = 0; i < std::size(kSeriesColors); ++i) {
    absl::StrAppend(&css, ".chart .c", i, "{stroke:", kSeriesColors[i].*tone,
                    ";fill:", kSeriesColors[i].*tone, "}");
  }
  return css + "\n";
}

class Svg {
 public:
  void Text(double x, double y, const char* anchor, const std::string& text,
            const char* extra = "") {
    absl::StrAppendFormat(&svg_, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\"%s>%s</text>\n", x,
                          y, anchor, extra, EscapeHtml(text));
  }
  void Line(const char* css_class, double x1, double y1, double x2, double y2) {
    absl::StrAppendFormat(&svg_,
                          "<line class=\"%s\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n",
                          css_class, x1, y1, x2, y2);
  }
  void Raw(absl::string_view svg) { absl::StrAppend(&svg_, svg); }
  std::string Take() { return std::move(svg_); }

 private:
  std::string svg_;
};

std::string Open(double width, double height, absl::string_view title, const char* extra = "") {
  return absl::StrFormat(
      "<svg class=\"chart\" role=\"img\" viewBox=\"0 0 %g %g\" width=\"%g\" height=\"%g\" "
      "font-family=\"system-ui,sans-serif\" font-size=\"%g\"%s>\n<title>%s</title>\n",
      width, height, width, height, kFontSize, extra, EscapeHtml(title));
}

// A plot inside the rectangle from (left, top) to (right, bottom).
class Plot {
 public:
  Plot(const PlotChart& chart, double top, double width, double height)
      : chart_(chart),
        x_(AxisOf(&ChartPoint::x, chart.x_scale, std::clamp(int(width / 90), 3, 8))),
        y_(AxisOf(&ChartPoint::y, chart.y_scale, 6)),
        top_(top + 24),
        bottom_(top + height - 44),
        right_(width - 22) {
    double label = 0;
    for (const ChartAxis::Tick& tick : y_.ticks()) label = std::max(label, TextWidth(tick.label));
    left_ = std::max(30.0, label * kFontSize + 10);
  }

  std::string Draw() {
    svg_.Text(0, top_ - 12, "start", FitText(chart_.y_label, right_ / kFontSize));
    for (const ChartAxis::Tick& tick : y_.ticks()) {
      svg_.Line("grid", left_, Y(tick.value), right_, Y(tick.value));
      svg_.Text(left_ - 8, Y(tick.value) + 4.5, "end", tick.label);
    }
    for (const ChartAxis::Tick& tick : x_.ticks()) {
      svg_.Line("frame", X(tick.value), bottom_, X(tick.value), bottom_ + 5);
      svg_.Text(X(tick.value), bottom_ + 20, "middle", tick.label);
    }
    svg_.Line("frame", left_, bottom_, right_, bottom_);
    svg_.Text((left_ + right_) / 2, bottom_ + 39, "middle",
              FitText(chart_.x_label, (right_ - left_) / kFontSize));
    for (size_t i = 0; i < chart_.series.size(); ++i) Series(chart_.series[i], i);
    return svg_.Take();
  }

 private:
  double X(double value) const { return left_ + x_.Share(value) * (right_ - left_); }
  double Y(double value) const { return bottom_ - y_.Share(value) * (bottom_ - top_); }

  bool Shows(const ChartPoint& p) const {
    return ChartAxis::CanShow(p.x, chart_.x_scale) && ChartAxis::CanShow(p.y, chart_.y_scale);
  }

  ChartAxis AxisOf(double ChartPoint::*of, AxisScale scale, int max_ticks) const {
    double low = INFINITY, high = -INFINITY;
    for (const ChartSeries& series : chart_.series) {
      for (const ChartPoint& p : series.points) {
        if (!Shows(p)) continue;
        low = std::min(low, p.*of);
        high = std::max(high, p.*of);
      }
    }
    if (low > high) low = scale == AxisScale::kLinear ? 0 : 1, high = low + 1;
    const bool is_x = of == &ChartPoint::x;
    // Room for dots at the very edges would only make lines look cut off: x stays as it is.
    return ChartAxis(low, high,
                     {.scale = scale,
                      .whole_numbers = is_x && chart_.whole_x,
                      .tight = is_x && low < high,
                      .max_ticks = max_ticks});
  }

  void Series(const ChartSeries& series, size_t i) {
    const std::string css = SeriesClass(i);
    if (series.marks != ChartSeries::Marks::kPoints) {
      std::string points;
      for (const ChartPoint& p : series.points) {
        if (Shows(p)) absl::StrAppendFormat(&points, "%.1f,%.1f ", X(p.x), Y(p.y));
      }
      if (!points.empty()) {
        points.pop_back();
        svg_.Raw(absl::StrCat("<polyline class=\"", css, " line\" points=\"", points, "\"/>\n"));
      }
    }
    if (series.marks == ChartSeries::Marks::kLine) return;
    for (const ChartPoint& p : series.points) {
      if (!Shows(p)) continue;
      const std::string note =
          p.note.empty() ? absl::StrFormat("%s: %.6g, %.6g", series.name, p.x, p.y) : p.note;
      svg_.Raw(
          absl::StrFormat("<circle class=\"%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\"><title>%s</title>"
                          "</circle>\n",
                          css, X(p.x), Y(p.y), EscapeHtml(note)));
    }
  }

  const PlotChart& chart_;
  const ChartAxis x_, y_;
  const double top_, bottom_, right_;
  double left_ = 0;
  Svg svg_;
};

}  // namespace

std::string SeriesClass(size_t i) {
  const size_t colors = std::size(kSeriesColors);
  return absl::StrCat("c", i % colors, i / colors % 2 == 1 ? " dashed" : "");
}

std::string ChartStyle() {
  return absl::StrCat(
      ".chart polyline.line{fill:none;stroke-width:1.8;stroke-linejoin:round}"
      ".chart .dashed{stroke-dasharray:6 4}"
      ".chart circle,.chart rect{stroke:none}\n",
      Rules(&Colors::light), "@media (prefers-color-scheme:dark){\n", Rules(&Colors::dark), "}\n");
}

std::string LegendMark(const ChartSeries& series, size_t i, double x, double y) {
  const std::string css = SeriesClass(i);
  std::string mark;
  if (series.marks != ChartSeries::Marks::kPoints) {
    absl::StrAppendFormat(&mark, "<polyline class=\"%s line\" points=\"%.1f,%.1f %.1f,%.1f\"/>",
                          css, x + 1, y + 6, x + 23, y + 6);
  }
  if (series.marks != ChartSeries::Marks::kLine) {
    absl::StrAppendFormat(&mark, "<circle class=\"%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"4\"/>", css,
                          x + 12, y + 6);
  }
  return mark;
}

std::string PlotSvg(const PlotChart& chart, double width, double height) {
  return absl::StrCat(Open(width, height, chart.title), Plot(chart, 0, width, height).Draw(),
                      "</svg>\n");
}

std::string BarSvg(const BarChart& chart, double width) {
  constexpr double kRow = 40, kThickness = 10;
  double low = 0, high = 0;
  for (const BarChart::Bar& bar : chart.bars) {
    if (!std::isfinite(bar.value)) continue;
    low = std::min(low, bar.value);
    high = std::max(high, bar.value);
  }
  const auto at = [&](double value) {
    return high > low ? (value - low) / (high - low) * width : 0;
  };
  Svg svg;
  for (size_t i = 0; i < chart.bars.size(); ++i) {
    const BarChart::Bar& bar = chart.bars[i];
    const double top = double(i) * kRow, value = std::isfinite(bar.value) ? bar.value : 0;
    const std::string text = FitText(bar.text, width * 0.5 / kFontSize);
    const double room = width / kFontSize - TextWidth(text) - 1;
    svg.Text(0, top + 14, "start", FitText(bar.label, room));
    svg.Text(width, top + 14, "end", text, " class=\"value\"");
    const double from = at(std::min(value, 0.0)), to = at(std::max(value, 0.0));
    svg.Raw(absl::StrFormat(
        "<rect class=\"%s\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%g\" rx=\"2\"><title>%s: "
        "%s</title></rect>\n",
        bar.marked ? "marked" : "bar", from, top + 20, to - from, kThickness, EscapeHtml(bar.label),
        EscapeHtml(bar.text)));
  }
  return absl::StrCat(
      Open(width, double(std::max<size_t>(chart.bars.size(), 1)) * kRow, chart.title), svg.Take(),
      "</svg>\n");
}

std::string PlotDocument(const PlotChart& chart) {
  constexpr double kWidth = 720, kHeight = 380, kMargin = 14, kLegendLine = 20;
  const double head = 8 + kLegendLine * double(chart.series.size());
  const double width = kWidth + 2 * kMargin, height = kHeight + head + kMargin;
  Svg svg;
  svg.Raw(Open(width, height, chart.title, " xmlns=\"http://www.w3.org/2000/svg\""));
  svg.Raw(absl::StrCat("<style>", ChartStyle(), "</style>\n"));
  svg.Raw(absl::StrFormat("<rect class=\"ground\" width=\"%g\" height=\"%g\"/>\n", width, height));
  svg.Raw(absl::StrFormat("<g transform=\"translate(%g,0)\">\n", kMargin));
  for (size_t i = 0; i < chart.series.size(); ++i) {
    const double y = 10 + kLegendLine * double(i);
    svg.Raw(LegendMark(chart.series[i], i, 0, y));
    svg.Text(32, y + 10.5, "start", FitText(chart.series[i].name, (kWidth - 32) / kFontSize));
  }
  svg.Raw(Plot(chart, head, kWidth, kHeight).Draw());
  svg.Raw("</g>\n</svg>\n");
  return svg.Take();
}

}  // namespace qlora::engine
