#include "proto/sweep_jobs.h"

#include "gmock/gmock.h"
#include "google/protobuf/text_format.h"
#include "gtest/gtest.h"
#include "proto/job_check.h"
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

// Lists that fit into a job give grids that fit nowhere: counted, not made.
TEST(SweepJobsTest, AHugeGridIsRefusedWithoutBeingMade) {
  Job job;
  job.set_model("m");
  job.set_output_dir("out");
  job.mutable_data()->set_train_file("t");
  for (int i = 1; i <= 100'000; ++i) {
    job.mutable_sweep()->add_ranks(1 + i % 1024);
    job.mutable_sweep()->add_seeds(i);
  }
  EXPECT_TRUE(SweepJobs(job).empty());
  const absl::Status status = CheckJob(job, Command::kSweep);
  EXPECT_THAT(std::string(status.message()),
              testing::HasSubstr("sweep: found 10000000000 adapters"));
}

TEST(SweepJobsTest, AnAdaptersFolderLiesBelowTheSweeps) {
  for (const char* name : {"..", ".hidden", "a/b", ""}) {
    Job job;
    job.mutable_sweep()->add_adapter()->set_name(name);
    EXPECT_THAT(std::string(CheckJob(job, Command::kSweep).message()),
                testing::HasSubstr("sweep.adapter[0].name: found \""))
        << name;
  }
}

}  // namespace
}  // namespace qlora::proto
