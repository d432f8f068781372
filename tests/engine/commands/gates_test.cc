#include "engine/commands/gates.h"

#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/exit_codes.h"

namespace qlora::engine {
namespace {

using testing::HasSubstr;
using testing::Not;

proto::Gates AllGates() {
  proto::Gates gates;
  gates.set_max_eval_loss_increase(-0.5);
  gates.set_min_exact_match(0.8);
  gates.set_max_kl(0.05);
  return gates;
}

TEST(Gates, PassAtTheirLimits) {
  const auto results =
      CheckGates(AllGates(), {.eval_loss_increase = -0.5, .exact_match = 0.8, .kl = 0.05});
  EXPECT_EQ(results.size(), 3u);
  EXPECT_TRUE(GateStatus(MissedGates(results)).ok());
}

TEST(Gates, AllThatAreMissedAreNamed) {
  const absl::Status status = GateStatus(MissedGates(
      CheckGates(AllGates(), {.eval_loss_increase = -0.49, .exact_match = 0.79, .kl = 0.01})));
  EXPECT_EQ(proto::ExitCodeOf(status), 79);
  const std::string message(status.message());
  EXPECT_THAT(message, HasSubstr("gates.max_eval_loss_increase missed: -0.49, at most -0.5"));
  EXPECT_THAT(message, HasSubstr("gates.min_exact_match missed: 0.79, at least 0.8"));
  EXPECT_THAT(message, Not(HasSubstr("max_kl")));
}

TEST(Gates, AreCheckedWhereTheirMetricIs) {
  EXPECT_TRUE(CheckGates(AllGates(), {}).empty());
  EXPECT_TRUE(CheckGates({}, {.eval_loss_increase = 1, .exact_match = 0, .kl = 9}).empty());
}

TEST(Gates, TrainingIsMeasuredAgainstItsStart) {
  proto::RunState state;
  for (const auto& [step, loss] : {std::pair(0, 3.0), {50, 1.0}, {100, 2.0}}) {
    proto::LogRecord* record = state.add_log_history();
    record->set_step(step);
    record->set_eval_loss(loss);
  }
  EXPECT_EQ(TrainingMetrics(state, false).eval_loss_increase, -1.0);
  state.set_best_checkpoint("checkpoint-50");
  EXPECT_EQ(TrainingMetrics(state, true).eval_loss_increase, -2.0);
  EXPECT_EQ(TrainingMetrics(state, false).eval_loss_increase, -1.0);
}

TEST(Gates, WhatTrainingHasNotMeasuredDoesNotPass) {
  proto::RunState state;
  proto::LogRecord* record = state.add_log_history();
  record->set_step(50);
  record->set_eval_loss(1);
  for (const proto::RunState& run : {proto::RunState(), state}) {
    const auto results = CheckGates(AllGates(), TrainingMetrics(run, false));
    ASSERT_EQ(results.size(), 2u) << "training does not measure KL";
    EXPECT_THAT(MissedGates(results),
                testing::ElementsAre("gates.max_eval_loss_increase missed: not measured",
                                     "gates.min_exact_match missed: not measured"));
  }
}

TEST(Gates, NothingPassesByNotBeingANumber) {
  const auto results =
      CheckGates(AllGates(), {.eval_loss_increase = NAN, .exact_match = NAN, .kl = INFINITY});
  for (const GateResult& result : results) EXPECT_FALSE(result.passed) << result.field;
}

}  // namespace
}  // namespace qlora::engine
