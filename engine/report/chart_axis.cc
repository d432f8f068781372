#include "engine/report/chart_axis.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace qlora::engine {
namespace {

double Log(double value, AxisScale scale) {
  switch (scale) {
    case AxisScale::kLinear:
      return value;
    case AxisScale::kLog2:
      return std::log2(value);
    case AxisScale::kLog10:
      return std::log10(value);
  }
  return value;
}

// `value` in units of `unit`, to as many digits as ticks `tick` apart need.
std::string TickLabel(double value, double tick, double unit, const char* suffix) {
  if (value == 0) return "0";
  const int decimals = std::max(0, int(-std::floor(std::log10(tick / unit) + 1e-9)));
  return absl::StrFormat("%.*f%s", decimals, value / unit, suffix);
}

constexpr std::pair<double, const char*> kUnits[] = {
    {1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}};
// Below it thousands are written out.
constexpr double kSmallestScaled = 1e4;

}  // namespace

std::string ShortNumber(double value) {
  for (const auto& [unit, suffix] : kUnits) {
    if (std::abs(value) >= unit && std::abs(value) >= kSmallestScaled) {
      return absl::StrFormat("%.4g%s", value / unit, suffix);
    }
  }
  return absl::StrReplaceAll(absl::StrFormat("%.4g", value), {{"e-0", "e-"}, {"e+0", "e"}});
}

bool ChartAxis::CanShow(double value, AxisScale scale) {
  return std::isfinite(value) && (scale == AxisScale::kLinear || value > 0);
}

ChartAxis::ChartAxis(double low, double high, const Options& options)
    : scale_(options.scale), low_(Log(low, scale_)), high_(Log(high, scale_)) {
  if (scale_ == AxisScale::kLinear) {
    MakeLinear(options);
  } else {
    MakeLog(options);
  }
}

double ChartAxis::Share(double value) const { return (Log(value, scale_) - low_) / (high_ - low_); }

void ChartAxis::MakeLinear(const Options& options) {
  if (high_ <= low_) high_ = low_ + std::max(1.0, std::abs(low_)) * 0.1;
  const double raw = (high_ - low_) / (options.max_ticks - 1);
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  double tick = 10 * power;
  for (const double factor : {5.0, 2.0, 1.0}) {
    if (factor * power >= raw) tick = factor * power;
  }
  if (options.whole_numbers) tick = std::max(tick, 1.0);
  double first = std::floor(low_ / tick), last = std::ceil(high_ / tick);
  if (options.tight) {
    first = std::ceil(low_ / tick), last = std::floor(high_ / tick);
  } else {
    low_ = first * tick, high_ = last * tick;
  }
  const double largest = std::max(std::abs(low_), std::abs(high_));
  double unit = 1;
  const char* suffix = "";
  for (const auto& [u, s] : kUnits) {
    // Not where a tick would be a thousandth of the unit: the labels would say less than the
    // number.
    if (unit == 1 && largest >= u && largest >= kSmallestScaled && tick >= u * 1e-2) {
      unit = u, suffix = s;
    }
  }
  for (double i = first; i <= last; ++i) {
    const double value = i * tick;
    ticks_.push_back(
        {value, tick < 1e-4 ? ShortNumber(value) : TickLabel(value, tick, unit, suffix)});
  }
}

void ChartAxis::MakeLog(const Options& options) {
  const double base = scale_ == AxisScale::kLog2 ? 2 : 10;
  const int64_t decades = int64_t(std::floor(high_ + 1e-9)) - int64_t(std::ceil(low_ - 1e-9));
  std::vector<double> factors = {1};
  // 1, 2, 5 in every decade.
  if (scale_ == AxisScale::kLog10 && 3 * (decades + 1) <= options.max_ticks) factors = {1, 2, 5};
  std::vector<double> steps;  // logarithms of the ticks that could be, from below `low` on
  for (int64_t n = int64_t(std::floor(low_)) - 1; n <= int64_t(std::ceil(high_)) + 1; ++n) {
    for (const double factor : factors) steps.push_back(double(n) + Log(factor, scale_));
  }
  // Widened to the nearest of them.
  const auto above_low = std::upper_bound(steps.begin(), steps.end(), low_ + 1e-9);
  auto at_high = std::lower_bound(steps.begin(), steps.end(), high_ - 1e-9);
  const auto at_low = above_low - 1;
  if (at_high == at_low) ++at_high;
  low_ = *at_low, high_ = *at_high;
  const int64_t count = at_high - at_low + 1;
  const int64_t stride = (count + options.max_ticks - 1) / options.max_ticks;
  for (auto step = at_low; step <= at_high; step += std::min<int64_t>(stride, at_high - step + 1)) {
    const double value = std::pow(base, *step);
    ticks_.push_back({value, ShortNumber(value)});
  }
}

}  // namespace qlora::engine
