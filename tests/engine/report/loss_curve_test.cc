#include "engine/report/loss_curve.h"

#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qlora::engine {
namespace {

using testing::HasSubstr;
using testing::Not;

proto::RunState StateOf(std::initializer_list<std::pair<int64_t, double>> train,
                        std::initializer_list<std::pair<int64_t, double>> eval) {
  proto::RunState state;
  for (const auto& [step, loss] : train) {
    proto::LogRecord* record = state.add_log_history();
    record->set_step(step);
    record->set_loss(loss);
  }
  for (const auto& [step, loss] : eval) {
    proto::LogRecord* record = state.add_log_history();
    record->set_step(step);
    record->set_eval_loss(loss);
  }
  return state;
}

TEST(LossCurve, PlacesPointsByStepAndLoss) {
  const std::string svg = LossCurveSvg(StateOf({{0, 4.0}, {50, 2.0}, {100, 3.0}}, {{100, 2.5}}));
  // Loss 2 at the foot of the frame, loss 4 at its head; the first and the last step at its sides.
  EXPECT_THAT(svg, HasSubstr("points=\"35.0,72.0 366.5,384.0 698.0,228.0\""));
  EXPECT_THAT(svg, HasSubstr("cx=\"698.0\" cy=\"306.0\""));
  EXPECT_THAT(svg, HasSubstr("training: 4.0000 to 3.0000"));
  EXPECT_THAT(svg, HasSubstr("held out: 2.5000 to 2.5000"));
  EXPECT_THAT(svg, HasSubstr("<title>step 100: 2.5000</title>"));
  EXPECT_THAT(svg, HasSubstr(">20</text>"));
  EXPECT_THAT(svg, HasSubstr(">2.5</text>"));
}

TEST(LossCurve, LeavesOutWhatIsNotFinite) {
  const std::string svg = LossCurveSvg(StateOf({{1, 3.0}, {2, NAN}, {3, INFINITY}, {4, 2.0}}, {}));
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, Not(HasSubstr("inf")));
  EXPECT_THAT(svg, HasSubstr("training: 3.0000 to 2.0000"));
}

TEST(LossCurve, DrawsRunsOfNoAndOfOneRecord) {
  EXPECT_THAT(LossCurveSvg({}), HasSubstr("</svg>"));
  EXPECT_THAT(LossCurveSvg({}), Not(HasSubstr("<polyline")));
  const std::string svg = LossCurveSvg(StateOf({{1, 2.0}}, {{1, 2.0}}));
  EXPECT_THAT(svg, HasSubstr("<circle"));
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
}

}  // namespace
}  // namespace qlora::engine
