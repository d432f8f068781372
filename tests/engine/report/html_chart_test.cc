#include "engine/report/html_chart.h"

#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qlora::engine {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

std::vector<std::string> Labels(const ChartAxis& axis) {
  std::vector<std::string> labels;
  for (const ChartAxis::Tick& tick : axis.ticks()) labels.push_back(tick.label);
  return labels;
}

TEST(ChartAxis, WidensToRoundTicks) {
  const ChartAxis axis(0.13, 0.87, {.max_ticks = 6});
  EXPECT_THAT(Labels(axis), ElementsAre("0", "0.2", "0.4", "0.6", "0.8", "1.0"));
  EXPECT_DOUBLE_EQ(axis.Share(0.25), 0.25);
}

TEST(ChartAxis, StaysAsGivenWhereTight) {
  const ChartAxis axis(1, 43, {.whole_numbers = true, .tight = true, .max_ticks = 6});
  EXPECT_THAT(Labels(axis), ElementsAre("10", "20", "30", "40"));
  EXPECT_DOUBLE_EQ(axis.Share(1), 0);
  EXPECT_DOUBLE_EQ(axis.Share(43), 1);
}

TEST(ChartAxis, WritesLargeAndSmallNumbersShort) {
  EXPECT_THAT(Labels(ChartAxis(0, 40000, {.max_ticks = 5})),
              ElementsAre("0", "10k", "20k", "30k", "40k"));
  EXPECT_THAT(Labels(ChartAxis(0, 4e-5, {.max_ticks = 5})),
              ElementsAre("0", "1e-5", "2e-5", "3e-5", "4e-5"));
  // A unit would hide the difference between neighbours.
  EXPECT_THAT(Labels(ChartAxis(1000001, 1000003, {.max_ticks = 3})),
              ElementsAre("1000001", "1000002", "1000003"));
}

TEST(ChartAxis, TicksOfLogarithmsArePowers) {
  EXPECT_THAT(Labels(ChartAxis(4, 64, {.scale = AxisScale::kLog2})),
              ElementsAre("4", "8", "16", "32", "64"));
  EXPECT_THAT(Labels(ChartAxis(0.03, 900, {.scale = AxisScale::kLog10})),
              ElementsAre("0.01", "0.1", "1", "10", "100", "1000"));
  EXPECT_THAT(Labels(ChartAxis(3, 8, {.scale = AxisScale::kLog10})), ElementsAre("2", "5", "10"));
  EXPECT_LE(ChartAxis(1e-30, 1e30, {.scale = AxisScale::kLog10, .max_ticks = 6}).ticks().size(), 6);
  const ChartAxis axis(1, 100, {.scale = AxisScale::kLog10});
  EXPECT_DOUBLE_EQ(axis.Share(10), 0.5);
}

TEST(ChartAxis, OfOneValueHasARange) {
  for (const AxisScale scale : {AxisScale::kLinear, AxisScale::kLog2, AxisScale::kLog10}) {
    const ChartAxis axis(4, 4, {.scale = scale});
    EXPECT_GE(axis.ticks().size(), 2u);
    EXPECT_TRUE(std::isfinite(axis.Share(4)));
  }
}

TEST(PlotSvg, LeavesOutWhatAnAxisCannotShow) {
  const PlotChart chart{
      .y_scale = AxisScale::kLog10,
      .series = {{.name = "s", .points = {{1, 10}, {2, 0}, {3, NAN}, {4, INFINITY}, {5, 100}}}}};
  const std::string svg = PlotSvg(chart, 400, 300);
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, Not(HasSubstr("inf")));
  EXPECT_THAT(svg, HasSubstr("<polyline class=\"c0 line\" points=\"35.0,256.0 378.0,24.0\"/>"));
}

TEST(PlotSvg, DrawsNothingFromNothing) {
  EXPECT_THAT(PlotSvg({}, 400, 300), Not(HasSubstr("<polyline")));
  EXPECT_THAT(PlotSvg({.x_scale = AxisScale::kLog10}, 400, 300), Not(HasSubstr("nan")));
}

TEST(PlotSvg, TellsTheSeventhSeriesFromTheFirst) {
  EXPECT_EQ(SeriesClass(0), "c0");
  EXPECT_EQ(SeriesClass(6), "c0 dashed");
}

TEST(BarSvg, LengthsAreInProportion) {
  const std::string svg = BarSvg({.bars = {{.label = "a", .value = 4, .text = "4 s"},
                                           {.label = "b", .value = 1, .text = "1 s"}}},
                                 400);
  EXPECT_THAT(svg, HasSubstr("x=\"0.0\" y=\"20.0\" width=\"400.0\""));
  EXPECT_THAT(svg, HasSubstr("x=\"0.0\" y=\"60.0\" width=\"100.0\""));
}

TEST(BarSvg, GoesBothWaysFromZero) {
  const std::string svg = BarSvg({.bars = {{.value = -1}, {.value = 3}, {.value = NAN}}}, 400);
  EXPECT_THAT(svg, HasSubstr("x=\"0.0\" y=\"20.0\" width=\"100.0\""));
  EXPECT_THAT(svg, HasSubstr("x=\"100.0\" y=\"60.0\" width=\"300.0\""));
  EXPECT_THAT(svg, HasSubstr("x=\"100.0\" y=\"100.0\" width=\"0.0\""));
}

}  // namespace
}  // namespace qlora::engine
