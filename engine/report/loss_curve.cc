#include "engine/report/loss_curve.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace qlora::engine {
namespace {

// The frame's edges in the picture.
constexpr double kWidth = 720, kHeight = 400;
constexpr double kLeft = 64, kRight = 700, kTop = 48, kBottom = 350;
constexpr const char* kTrainColor = "#1f6fb4";
constexpr const char* kEvalColor = "#c2410c";

struct Point {
  double step, loss;
};

// One axis: values in [low, high] to positions, with ticks at multiples of `tick`.
struct Axis {
  double low, high, tick, at_low, at_high;
  double At(double value) const {
    return at_low + (value - low) / (high - low) * (at_high - at_low);
  }
};

// The range widened to whole ticks of 1, 2 or 5 · 10^n, about five of them; steps are whole
// numbers.
Axis MakeAxis(double low, double high, double smallest_tick, double at_low, double at_high) {
  if (high <= low) high = low + std::max(1.0, std::abs(low)) * 0.1;
  const double raw = (high - low) / 5;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  double tick = 10 * power;
  for (const double factor : {5.0, 2.0, 1.0}) {
    if (factor * power >= raw) tick = factor * power;
  }
  tick = std::max(tick, smallest_tick);
  return {std::floor(low / tick) * tick, std::ceil(high / tick) * tick, tick, at_low, at_high};
}

class Drawing {
 public:
  explicit Drawing(const proto::RunState& state) {
    for (const proto::LogRecord& record : state.log_history()) {
      if (record.has_loss() && std::isfinite(record.loss())) {
        train_.push_back({double(record.step()), record.loss()});
      }
      if (record.has_eval_loss() && std::isfinite(record.eval_loss())) {
        eval_.push_back({double(record.step()), record.eval_loss()});
      }
    }
    double last = 1, low = 1e300, high = -1e300;
    for (const auto* points : {&train_, &eval_}) {
      for (const Point& p : *points) {
        last = std::max(last, p.step);
        low = std::min(low, p.loss);
        high = std::max(high, p.loss);
      }
    }
    if (low > high) low = 0, high = 1;
    x_ = MakeAxis(0, last, 1, kLeft, kRight);
    x_.high = last;  // the line ends at the frame
    y_ = MakeAxis(low, high, 0, kBottom, kTop);
  }

  std::string Svg() {
    absl::StrAppendFormat(
        &svg_,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %g %g\" "
        "width=\"%g\" height=\"%g\" font-family=\"sans-serif\" font-size=\"12\">\n"
        "<title>Loss by step</title>\n"
        "<rect width=\"%g\" height=\"%g\" fill=\"white\"/>\n",
        kWidth, kHeight, kWidth, kHeight, kWidth, kHeight);
    Ticks();
    Frame();
    TrainLine();
    EvalDots();
    Legend();
    svg_ += "</svg>\n";
    return std::move(svg_);
  }

 private:
  void Text(double x, double y, const char* anchor, const std::string& text,
            const char* color = "#333") {
    absl::StrAppendFormat(&svg_,
                          "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" fill=\"%s\">%s</text>\n",
                          x, y, anchor, color, text);
  }
  void Line(double x1, double y1, double x2, double y2, const char* color) {
    absl::StrAppendFormat(&svg_,
                          "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n",
                          x1, y1, x2, y2, color);
  }

  void Ticks() {
    for (int64_t i = 0; y_.low + double(i) * y_.tick <= y_.high + y_.tick / 2; ++i) {
      const double value = y_.low + double(i) * y_.tick;
      Line(kLeft, y_.At(value), kRight, y_.At(value), "#e5e5e5");
      Text(kLeft - 8, y_.At(value) + 4, "end", absl::StrFormat("%.4g", value));
    }
    for (int64_t i = 0; double(i) * x_.tick <= x_.high; ++i) {
      const double value = double(i) * x_.tick;
      Line(x_.At(value), kBottom, x_.At(value), kBottom + 5, "#333");
      Text(x_.At(value), kBottom + 20, "middle", absl::StrFormat("%.0f", value));
    }
    Text((kLeft + kRight) / 2, kBottom + 40, "middle", "step");
    Text(kLeft, kTop - 30, "middle", "loss");
  }

  void Frame() {
    Line(kLeft, kTop, kLeft, kBottom, "#333");
    Line(kLeft, kBottom, kRight, kBottom, "#333");
  }

  void TrainLine() {
    if (train_.empty()) return;
    absl::StrAppendFormat(
        &svg_, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"1.5\" points=\"", kTrainColor);
    for (const Point& p : train_) {
      absl::StrAppendFormat(&svg_, "%.1f,%.1f ", x_.At(p.step), y_.At(p.loss));
    }
    svg_ += "\"/>\n";
  }

  void EvalDots() {
    for (const Point& p : eval_) {
      absl::StrAppendFormat(&svg_,
                            "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"%s\"><title>step %.0f: "
                            "%.4f</title></circle>\n",
                            x_.At(p.step), y_.At(p.loss), kEvalColor, p.step, p.loss);
    }
  }

  void Legend() {
    const auto ends = [](const std::vector<Point>& points) {
      return absl::StrFormat("%.4f to %.4f", points.front().loss, points.back().loss);
    };
    double y = kTop - 30;
    if (!train_.empty())
      Text(kRight, y, "end", absl::StrCat("— training: ", ends(train_)), kTrainColor);
    if (!eval_.empty())
      Text(kRight, y + 16, "end", absl::StrCat("● held out: ", ends(eval_)), kEvalColor);
  }

  std::vector<Point> train_, eval_;
  Axis x_, y_;
  std::string svg_;
};

}  // namespace

std::string LossCurveSvg(const proto::RunState& state) { return Drawing(state).Svg(); }

}  // namespace qlora::engine
