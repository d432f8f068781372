#include "proto/sweep_jobs.h"

#include "gmock/gmock.h"
#include "google/protobuf/text_format.h"
#include "gtest/gtest.h"
#include "proto/job_defaults.h"

namespace qlora::proto {
namespace {

std::vector<SweepJob> JobsOf(const char* text) {
  Job job;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &job));
  return SweepJobs(WithDefaults(job));
}

std::vector<std::string> NamesOf(const std::vector<SweepJob>& jobs) {
  std::vector<std::string> names;
  for (const SweepJob& job : jobs) names.push_back(job.name);
  return names;
}

TEST(SweepJobsTest, EntriesThenTheGridRanksOutermost) {
  const auto jobs = JobsOf(
      "output_dir: 'out' sweep { ranks: 8 ranks: 2 learning_rates: 1e-3 seeds: 1 seeds: 2\n"
      "  adapter {} adapter { name: 'mine' } }");
  EXPECT_THAT(NamesOf(jobs),
              testing::ElementsAre("adapter-0", "mine", "r8-lr0.001-seed1", "r8-lr0.001-seed2",
                                   "r2-lr0.001-seed1", "r2-lr0.001-seed2"));
  EXPECT_EQ(jobs[5].job.lora().r(), 2);
  EXPECT_EQ(jobs[5].job.seed(), 2);
  EXPECT_EQ(jobs[5].job.training().learning_rate(), 1e-3);
  EXPECT_EQ(jobs[5].job.output_dir(), "out/r2-lr0.001-seed2");
  EXPECT_EQ(jobs[1].path, "sweep.adapter[1]");
}

TEST(SweepJobsTest, WhatAnEntryLeavesOutIsTheJobs) {
  const auto jobs = JobsOf(
      "seed: 5 lora { r: 7 target_modules_regex: 'x' } training { learning_rate: 2e-3 }\n"
      "data { train_file: 't' eval_fraction: 0.1 }\n"
      "sweep { adapter {} adapter { target_modules: 'q_proj' eval_file: 'e' seed: 6 } }");
  EXPECT_EQ(jobs[0].job.lora().r(), 7);
  EXPECT_EQ(jobs[0].job.seed(), 5);
  EXPECT_EQ(jobs[0].job.data().train_file(), "t");
  EXPECT_EQ(jobs[0].job.lora().target_modules_regex(), "x");
  EXPECT_FALSE(jobs[0].job.has_sweep());
  EXPECT_FALSE(jobs[1].job.lora().has_target_modules_regex());
  EXPECT_EQ(jobs[1].job.data().eval_file(), "e");
  EXPECT_EQ(jobs[1].job.data().eval_fraction(), 0) << "an own file instead of a share";
}

}  // namespace
}  // namespace qlora::proto
