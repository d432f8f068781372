#include "engine/data/dataset.h"

#include <atomic>
#include <set>
#include <string>

#include "engine/data/describe.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/exit_codes.h"
#include "tests/engine/data/byte_tokenizer.h"

namespace qlora::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

absl::StatusOr<Dataset> Load(const std::string& contents, const proto::Data& data, int threads = 1,
                             int64_t max_samples = 0) {
  const auto tokenizer = ByteTokenizer();
  return LoadDataset(Env::Default(), WriteTemp("t.jsonl", contents), data, tokenizer.get(), threads,
                     max_samples);
}

std::string Texts(int n) {
  std::string file;
  for (int i = 0; i < n; ++i) {
    absl::StrAppend(&file, "{\"text\":\"", std::string(1 + i % 7, 'a' + i % 26), i, "\"}\n");
  }
  return file;
}

TEST(DatasetTest, TellsOfEachRecord) {
  const auto tokenizer = ByteTokenizer();
  std::atomic<int> told{0};
  ASSERT_TRUE(LoadDataset(Env::Default(), WriteTemp("t.jsonl", Texts(40)), DefaultData(),
                          tokenizer.get(), 2, 0, [&] { ++told; })
                  .ok());
  EXPECT_EQ(told, 40);
}

TEST(DatasetTest, CountsWhatItKeepsCutsAndLeavesOut) {
  proto::Data data = DefaultData();
  data.set_max_length(6);  // BOS + 5
  const std::string file =
      R"({"prompt":"a","completion":"b"})"  // 4 tokens, 2 trained
      "\n\n"
      R"({"prompt":"a","completion":"bcdefg"})"  // cut to 6, 4 trained
      "\r\n"
      R"({"prompt":"abcdefgh","completion":"x"})"  // cut within the prompt: nothing left
      "\n"
      R"({"prompt":"a","completion":"b","other":1})"  // equal to the first
      "\n";
  auto dataset = Load(file, data);
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  const DatasetReport& report = dataset->report;
  EXPECT_EQ(report.records, 4);
  EXPECT_EQ(report.samples, 3);
  EXPECT_EQ(report.truncated, 2);
  EXPECT_EQ(report.without_target, 1);
  EXPECT_EQ(report.dropped_long, 0);
  EXPECT_EQ(report.duplicates, 1);
  EXPECT_EQ(report.tokens, 4 + 6 + 4);
  EXPECT_EQ(report.trained_tokens, 2 + 4 + 2);
  EXPECT_EQ(report.longest, 6);
  EXPECT_THAT(report.lengths, ElementsAre(0, 0, 3));
  EXPECT_EQ(report.format, proto::DataFormat::PROMPT_COMPLETION);
  EXPECT_EQ(report.sha256.size(), 64u);
  EXPECT_EQ(Show(dataset->samples[1].ids), "[BOS]abcde");
  EXPECT_EQ(dataset->samples[1].line, 3);
  EXPECT_EQ(dataset->samples[2].line, 5);
  EXPECT_THAT(DescribeDataset(report),
              AllOf(HasSubstr("3 samples of 4 records, PROMPT_COMPLETION"),
                    HasSubstr("14 tokens, 8 of them trained on (57.1 %)"),
                    HasSubstr("2 cut to max_length"), HasSubstr("1 equal to an earlier")));
}

// What is left of a prompt is not one.
TEST(DatasetTest, ACutPromptIsNone) {
  proto::Data data = DefaultData();
  data.set_max_length(6);
  data.set_train_on_prompt(true);
  auto dataset = Load(R"({"prompt":"abcd","completion":"efg"})"
                      "\n"
                      R"({"prompt":"abcde","completion":"f"})",
                      data);
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_EQ(dataset->samples[0].prompt, 5);
  EXPECT_EQ(dataset->samples[1].prompt, 0);
}

TEST(DatasetTest, DropAndErrorInsteadOfCutting) {
  proto::Data data = DefaultData();
  data.set_max_length(4);
  data.set_truncation(proto::Truncation::DROP);
  const std::string file = "{\"text\":\"abcdef\"}\n{\"text\":\"ab\"}\n{\"text\":\"abc\"}\n";
  auto dataset = Load(file, data);
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_EQ(dataset->report.dropped_long, 2);
  EXPECT_EQ(dataset->report.truncated, 0);
  ASSERT_EQ(dataset->samples.size(), 1u);
  EXPECT_EQ(Show(dataset->samples[0].ids), "[BOS]ab[EOS]");
  data.set_truncation(proto::Truncation::ERROR);
  dataset = Load(file, data);
  EXPECT_EQ(proto::ExitCodeOf(dataset.status()), proto::kExitBadData);
  EXPECT_THAT(std::string(dataset.status().message()),
              AllOf(HasSubstr("t.jsonl:1: found 8 tokens; allowed: data.max_length, 4"),
                    HasSubstr("t.jsonl:3: "), Not(HasSubstr("t.jsonl:2: "))));
}

TEST(DatasetTest, ThreadsChangeNothing) {
  const std::string file = Texts(301);
  auto one = Load(file, DefaultData(), 1);
  ASSERT_TRUE(one.ok()) << one.status();
  for (const int threads : {0, 2, 5}) {
    auto many = Load(file, DefaultData(), threads);
    ASSERT_TRUE(many.ok()) << many.status();
    ASSERT_EQ(many->samples.size(), 301u);
    for (size_t i = 0; i < 301; ++i) {
      EXPECT_EQ(many->samples[i].ids, one->samples[i].ids);
      EXPECT_EQ(many->samples[i].line, static_cast<int64_t>(i) + 1);
    }
    EXPECT_EQ(many->report.tokens, one->report.tokens);
  }
  auto first = Load(file, DefaultData(), 2, 10);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(first->samples.size(), 10u);
}

TEST(DatasetTest, RefusesFilesThatTeachNothing) {
  proto::Data data = DefaultData();
  for (const char* file : {"", "\n\n", "{\"input_ids\":[]}\n", "{\"input_ids\":[1]}\n",
                           "{\"input_ids\":[1,2,3],\"labels\":[1,-100,-100]}\n"}) {
    const auto dataset = Load(file, data);
    EXPECT_EQ(proto::ExitCodeOf(dataset.status()), proto::kExitBadData) << file;
  }
  EXPECT_THAT(std::string(Load("{\"input_ids\":[1]}", data).status().message()),
              HasSubstr("no trained token in 1 records"));
}

TEST(DatasetTest, BadRecordsAreListedInTheFilesOrder) {
  std::string file = Texts(40);
  for (int i = 0; i < 7; ++i) file += "{\"text\":null}\n";
  file += "{\"text\":\"\xff\"}\n";
  std::string expected;
  for (const int threads : {1, 4}) {
    const auto dataset = Load(file, DefaultData(), threads);
    EXPECT_EQ(proto::ExitCodeOf(dataset.status()), proto::kExitBadData);
    const std::string message(dataset.status().message());
    EXPECT_THAT(message, AllOf(HasSubstr("8 bad records"), HasSubstr("t.jsonl:41: "),
                               HasSubstr("t.jsonl:45: "), Not(HasSubstr("t.jsonl:46: ")),
                               HasSubstr("and 3 more")));
    if (threads == 1) expected = message;
    EXPECT_EQ(message, expected);
  }
  const auto missing = LoadDataset(Env::Default(), "/nonexistent/t.jsonl", DefaultData(),
                                   ByteTokenizer().get(), 1, 0);
  EXPECT_EQ(proto::ExitCodeOf(missing.status()), proto::kExitBadData);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("/nonexistent/t.jsonl"));
}

TEST(DatasetTest, SplitMovesAShareChosenBySeed) {
  const auto split = [](double fraction, uint64_t seed) {
    auto dataset = Load(Texts(100), DefaultData());
    Dataset held_out = SplitForEvaluation(&*dataset, fraction, seed);
    EXPECT_EQ(dataset->samples.size() + held_out.samples.size(), 100u);
    EXPECT_EQ(dataset->report.samples, static_cast<int64_t>(dataset->samples.size()));
    EXPECT_EQ(held_out.report.samples, static_cast<int64_t>(held_out.samples.size()));
    EXPECT_EQ(held_out.report.sha256, dataset->report.sha256);
    std::set<int64_t> lines, moved;
    int64_t tokens = 0;
    for (const Sample& s : dataset->samples) {
      lines.insert(s.line);
      tokens += static_cast<int64_t>(s.ids.size());
    }
    EXPECT_EQ(dataset->report.tokens, tokens);
    for (const Sample& s : held_out.samples) {
      EXPECT_TRUE(moved.empty() || *moved.rbegin() < s.line);  // the file's order
      moved.insert(s.line);
      lines.insert(s.line);
    }
    EXPECT_EQ(lines.size(), 100u);
    return moved;
  };
  EXPECT_EQ(split(0.1, 1).size(), 10u);
  EXPECT_EQ(split(0.1, 1), split(0.1, 1));
  EXPECT_NE(split(0.1, 1), split(0.1, 2));
  EXPECT_EQ(split(1e-9, 1).size(), 1u);
  EXPECT_EQ(split(0.9999, 1).size(), 99u);
  EXPECT_EQ(split(0, 1).size(), 0u);
}

TEST(DatasetTest, DescribedSampleMarksTrainedRuns) {
  const Sample sample{{kBos, 'a', 0xC3, 0xA9, kEos}, {0, 0, 1, 1, 1}, 1};
  EXPECT_EQ(DescribeSample(sample, *ByteTokenizer(), "[", "]"),
            "<|begin_of_text|>a[\xC3\xA9<|end_of_text|>]");
}

}  // namespace
}  // namespace qlora::engine
