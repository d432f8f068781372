// An axis of a chart: its range, where a value lies in it, and round ticks with their labels.

#ifndef QLORA_ENGINE_REPORT_CHART_AXIS_H_
#define QLORA_ENGINE_REPORT_CHART_AXIS_H_

#include <string>
#include <vector>

namespace qlora::engine {

enum class AxisScale { kLinear, kLog2, kLog10 };

class ChartAxis {
 public:
  struct Tick {
    double value;
    std::string label;
  };
  struct Options {
    AxisScale scale = AxisScale::kLinear;
    bool whole_numbers = false;  // linear: ticks at integers only
    bool tight = false;          // linear: the range stays as given and is not widened to ticks
    int max_ticks = 7;           // at least 2
  };

  // Of finite values from `low` to `high`, on a logarithmic scale positive ones. Linear ticks are
  // 1, 2 or 5 · 10^n apart; logarithmic ones are powers, between which 2 and 5 · 10^n fill a short
  // range.
  ChartAxis(double low, double high, const Options& options);

  // 0 at the low end, 1 at the high end.
  double Share(double value) const;
  const std::vector<Tick>& ticks() const { return ticks_; }
  // Whether this scale has a place for the value.
  static bool CanShow(double value, AxisScale scale);

 private:
  void MakeLinear(const Options& options);
  void MakeLog(const Options& options);

  AxisScale scale_;
  double low_, high_;  // on a logarithmic scale, of the logarithms
  std::vector<Tick> ticks_;
};

// A number for a tick, as short as it can be: "0.05", "12k", "3.5M", "2e-5".
std::string ShortNumber(double value);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_REPORT_CHART_AXIS_H_
