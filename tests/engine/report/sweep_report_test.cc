#include "engine/report/sweep_report.h"

#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qlora::engine {
namespace {

using proto::SweepReport;
using testing::HasSubstr;

SweepReport::Adapter* Add(SweepReport* report, const std::string& name, int r, double loss) {
  SweepReport::Adapter* adapter = report->add_adapter();
  adapter->set_name(name);
  adapter->set_r(r);
  adapter->set_held_out("held_out.jsonl");
  adapter->set_eval_loss(loss);
  return adapter;
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
