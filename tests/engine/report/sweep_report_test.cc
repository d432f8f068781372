#include "engine/report/sweep_report.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qlora::engine {
namespace {

using proto::SweepReport;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

SweepReport::Adapter* Add(SweepReport* report, const std::string& name, int r, double loss) {
  SweepReport::Adapter* adapter = report->add_adapter();
  adapter->set_name(name);
  adapter->set_r(r);
  adapter->set_held_out("held_out.jsonl");
  adapter->set_eval_loss(loss);
  return adapter;
}

void AddGate(SweepReport::Adapter* adapter, bool passed) {
  SweepReport::Gate* gate = adapter->add_gates();
  gate->set_field("gates.min_exact_match");
  gate->set_passed(passed);
  gate->set_text(passed ? "gates.min_exact_match passed" : "gates.min_exact_match missed");
}

TEST(SweepReportTest, TheSmallestRankWithinTheToleranceIsEnough) {
  SweepReport report;
  report.set_tolerance(0.01);
  Add(&report, "r2", 2, 1.05);
  Add(&report, "r16", 16, 1.0);
  Add(&report, "r4", 4, 1.01);
  Add(&report, "r4-other", 4, 1.009);
  Add(&report, "r8", 8, 1.005);
  JudgeSweep(&report);
  EXPECT_EQ(report.metric(), SweepReport::LOSS);
  EXPECT_EQ(report.best(), "r16");
  EXPECT_EQ(report.smallest(), "r4-other") << "of one rank the best";
  EXPECT_FALSE(report.adapter(0).good_enough());
  EXPECT_TRUE(report.adapter(2).good_enough());
  EXPECT_THAT(report.verdict(), HasSubstr("rank 4 is enough"));
}

TEST(SweepReportTest, AtTheEdgeOfTheTolerance) {
  for (const auto& [loss, enough] : {std::pair{1.0625, true}, {1.07, false}}) {
    SweepReport report;
    report.set_tolerance(0.0625);
    Add(&report, "small", 1, loss);
    Add(&report, "large", 2, loss * (1 - 0.0625) + (enough ? 0.001 : -0.001));
    JudgeSweep(&report);
    EXPECT_EQ(report.smallest(), enough ? "small" : "large");
  }
}

TEST(SweepReportTest, WhatIsNotANumberIsNoResult) {
  SweepReport report;
  report.set_tolerance(0.01);
  Add(&report, "broken", 1, NAN);
  Add(&report, "overflown", 2, INFINITY);
  Add(&report, "fine", 4, 1.0);
  Add(&report, "worse", 2, 1.5);
  JudgeSweep(&report);
  EXPECT_EQ(report.best(), "fine");
  EXPECT_EQ(report.smallest(), "fine");
  EXPECT_THAT(SweepText(report), HasSubstr("not finite"));
}

TEST(SweepReportTest, ALossOfZeroIsWithinAnyTolerance) {
  SweepReport report;
  Add(&report, "exact", 8, 0.0);
  Add(&report, "as exact", 4, 0.0);
  JudgeSweep(&report);
  EXPECT_EQ(report.smallest(), "as exact");
}

TEST(SweepReportTest, ExactMatchesCountWhereAllHaveThem) {
  SweepReport report;
  report.set_tolerance(0.02);
  Add(&report, "low loss", 8, 0.5)->set_exact_match(0.8);
  Add(&report, "many right", 16, 0.9)->set_exact_match(0.9);
  Add(&report, "small", 4, 0.7)->set_exact_match(0.89);
  JudgeSweep(&report);
  EXPECT_EQ(report.metric(), SweepReport::EXACT_MATCH);
  EXPECT_EQ(report.best(), "many right");
  EXPECT_EQ(report.smallest(), "small");
}

// Whatever is equal, but for all right, tells nothing: the loss does.
TEST(SweepReportTest, ExactMatchesThatAreAllEqualDecideNothing) {
  for (const double share : {0.0, 0.4}) {
    SweepReport report;
    report.set_tolerance(0.01);
    Add(&report, "r1", 1, 4.0)->set_exact_match(share);
    Add(&report, "r4", 4, 3.0)->set_exact_match(share);
    Add(&report, "r16", 16, 2.99)->set_exact_match(share);
    JudgeSweep(&report);
    EXPECT_EQ(report.metric(), SweepReport::LOSS);
    EXPECT_EQ(report.best(), "r16");
    EXPECT_EQ(report.smallest(), "r4");
    const std::string why = absl::StrFormat(
        "compared by held-out loss: all have the same share of answers right, %.1f %%",
        100 * share);
    EXPECT_THAT(SweepText(report), HasSubstr(why));
    EXPECT_THAT(SweepPage(report), HasSubstr(why));
  }
}

TEST(SweepReportTest, WhereAllAnswersAreRightTheSmallestRankIsEnough) {
  SweepReport report;
  report.set_tolerance(0.01);
  Add(&report, "r1", 1, 4.0)->set_exact_match(1);
  Add(&report, "r4", 4, 3.0)->set_exact_match(1);
  JudgeSweep(&report);
  EXPECT_EQ(report.metric(), SweepReport::EXACT_MATCH);
  EXPECT_EQ(report.smallest(), "r1");
}

TEST(SweepReportTest, OneThatHasARightAnswerIsEnoughToTellApart) {
  SweepReport report;
  report.set_tolerance(0.01);
  Add(&report, "r1", 1, 3.0)->set_exact_match(0);
  Add(&report, "r4", 4, 4.0)->set_exact_match(0.05);
  JudgeSweep(&report);
  EXPECT_EQ(report.metric(), SweepReport::EXACT_MATCH);
  EXPECT_EQ(report.smallest(), "r4");
  EXPECT_THAT(SweepText(report), HasSubstr("compared by the share of answers"));
}

TEST(SweepReportTest, OneThatHasNoAnswersIsComparedByItsLoss) {
  SweepReport report;
  report.set_tolerance(0.01);
  Add(&report, "r1", 1, 3.0)->set_exact_match(0.5);
  Add(&report, "r4", 4, 2.0);
  JudgeSweep(&report);
  EXPECT_EQ(report.metric(), SweepReport::LOSS);
  EXPECT_EQ(report.smallest(), "r4");
}

TEST(SweepReportTest, OneRankAloneIsNoVerdict) {
  for (const bool also_another_seed : {false, true}) {
    SweepReport report;
    report.set_tolerance(0.01);
    Add(&report, "r4", 4, 1.0)->set_exact_match(0.5);
    if (also_another_seed) Add(&report, "r4-seed1", 4, 0.9)->set_exact_match(0.6);
    Add(&report, "r8", 8, 0.1)->set_not_trained("its numbers went bad");
    JudgeSweep(&report);
    EXPECT_EQ(report.best(), also_another_seed ? "r4-seed1" : "r4");
    EXPECT_EQ(report.smallest(), "");
    EXPECT_THAT(report.verdict(), HasSubstr("rank 4 alone shows nothing about others"));
    EXPECT_THAT(report.verdict(),
                HasSubstr(also_another_seed ? "60.0 % of answers" : "50.0 % of answers"));
    EXPECT_EQ(report.compared_by().empty(), !also_another_seed) << report.compared_by();
    EXPECT_THAT(SweepText(report) + SweepPage(report), Not(HasSubstr("enough:")));
  }
}

TEST(SweepReportTest, OnlyWhatPassesItsGatesIsChosen) {
  SweepReport report;
  report.set_tolerance(0.01);
  AddGate(Add(&report, "r2", 2, 1.0), false);
  AddGate(Add(&report, "r4", 4, 1.2), true);
  AddGate(Add(&report, "r8", 8, 1.1), true);
  AddGate(Add(&report, "r16", 16, 0.9), false);
  AddGate(Add(&report, "r32", 32, 1.1), true);
  JudgeSweep(&report);
  EXPECT_EQ(report.best(), "r8");
  EXPECT_EQ(report.smallest(), "r8");
  for (const SweepReport::Adapter& adapter : report.adapter()) {
    EXPECT_EQ(adapter.good_enough(), adapter.eval_loss() == 1.1) << adapter.name();
  }
  EXPECT_THAT(report.verdict(),
              AllOf(HasSubstr("rank 8 is enough"), HasSubstr("r2, r16 miss a gate")));
  for (const std::string& shown : {SweepText(report), SweepPage(report)}) {
    EXPECT_THAT(shown, AllOf(HasSubstr("r2: gates.min_exact_match missed"),
                             HasSubstr("r8: gates.min_exact_match passed")));
  }
}

// All gates must be passed.
TEST(SweepReportTest, WhereNonePassesNoRankIsEnough) {
  SweepReport report;
  report.set_tolerance(0.01);
  for (const int r : {2, 8}) {
    SweepReport::Adapter* adapter = Add(&report, absl::StrCat("r", r), r, 1.0 / r);
    AddGate(adapter, true);
    AddGate(adapter, false);
  }
  JudgeSweep(&report);
  EXPECT_EQ(report.smallest(), "");
  EXPECT_EQ(report.best(), "r8");
  EXPECT_THAT(report.verdict(), HasSubstr("no rank passes the gates"));
  EXPECT_THAT(SweepText(report), AllOf(HasSubstr("misses a gate"), Not(HasSubstr("enough"))));
  EXPECT_THAT(SweepPage(report), AllOf(HasSubstr("no rank passes the gates"),
                                       Not(HasSubstr("is enough")), Not(HasSubstr("<td>yes"))));
}

TEST(SweepReportTest, AdaptersOfDifferentDataAreNotCompared) {
  SweepReport report;
  Add(&report, "a", 2, 1.0);
  Add(&report, "b", 4, 0.5)->set_held_out("others.jsonl");
  JudgeSweep(&report);
  EXPECT_EQ(report.metric(), SweepReport::NONE);
  EXPECT_EQ(report.smallest(), "");
  EXPECT_THAT(report.verdict(), HasSubstr("no verdict"));
}

TEST(SweepReportTest, WhatWasNotTrainedDoesNotCount) {
  SweepReport report;
  report.set_tolerance(0.01);
  Add(&report, "r2", 2, 1.0);
  Add(&report, "r4", 4, 0.1)->set_not_trained("its numbers went bad");
  report.add_adapter()->set_not_trained("not needed");
  JudgeSweep(&report);
  EXPECT_EQ(report.best(), "r2");
  EXPECT_THAT(SweepText(report), HasSubstr("its numbers went bad"));
}

TEST(SweepReportTest, WhereNoneHasAResultThatIsWhatItSays) {
  SweepReport report;
  Add(&report, "a", 2, 1.0)->set_not_trained("its numbers went bad");
  Add(&report, "b", 4, NAN);
  JudgeSweep(&report);
  EXPECT_EQ(report.metric(), SweepReport::NONE);
  EXPECT_THAT(report.verdict(), HasSubstr("no adapter has a result"));
}

TEST(SweepReportTest, NamesAreShownAndNeverObeyed) {
  SweepReport report;
  report.set_tolerance(0.01);
  Add(&report, "<script>", 2, 1.0);
  JudgeSweep(&report);
  EXPECT_EQ(SweepPage(report).find("<script>"), std::string::npos);
  EXPECT_THAT(SweepPage(report), HasSubstr("&lt;script&gt;"));
}

}  // namespace
}  // namespace qlora::engine
