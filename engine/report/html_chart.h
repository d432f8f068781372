// Charts as SVG, for a page (html_page.h) or as a file of their own.

#ifndef QLORA_ENGINE_REPORT_HTML_CHART_H_
#define QLORA_ENGINE_REPORT_HTML_CHART_H_

#include <string>
#include <vector>

#include "engine/report/chart_axis.h"

namespace qlora::engine {

struct ChartPoint {
  double x = 0, y = 0;
  std::string note;  // shown on hovering; empty: the values
};

struct ChartSeries {
  enum class Marks { kLine, kPoints, kLineAndPoints };
  std::string name;
  Marks marks = Marks::kLine;
  std::vector<ChartPoint> points;  // a line joins them in this order
};

// Lines and scattered points over two axes. Points that an axis cannot show (not finite; not
// positive on a logarithmic scale) are left out.
struct PlotChart {
  std::string title;
  std::string x_label, y_label;
  AxisScale x_scale = AxisScale::kLinear, y_scale = AxisScale::kLinear;
  bool whole_x = false;  // x counts something: steps, layers
  std::vector<ChartSeries> series;
};

// One horizontal bar a row, from zero; its label and its value stand above it.
struct BarChart {
  struct Bar {
    std::string label;
    double value = 0;
    std::string text;     // the value as it is written, with its unit
    bool marked = false;  // the one that is chosen, or stands out
  };
  std::string title;
  std::vector<Bar> bars;
};

// Drawn `width` units wide, one unit a CSS pixel; without a title or legend. Colours come from
// ChartStyle.
std::string PlotSvg(const PlotChart& chart, double width, double height);
std::string BarSvg(const BarChart& chart, double width);

// A whole SVG document of 720 × 400 units or, by its legend of a line a series, more.
std::string PlotDocument(const PlotChart& chart);

// The colours of series and axes as CSS rules, for light and dark: Okabe and Ito's palette, which
// readers with any of the common colour deficiencies can tell apart. After the last colour it
// begins again with dashed lines.
std::string ChartStyle();
// CSS class of the i-th series: "c0" ...
std::string SeriesClass(size_t i);
// What stands before a series' name in a legend, 24 × 12 units.
std::string LegendMark(const ChartSeries& series, size_t i, double x, double y);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_REPORT_HTML_CHART_H_
