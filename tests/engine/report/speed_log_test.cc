#include "engine/report/speed_log.h"

#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/io/temp_folder.h"

namespace qlora::engine {
namespace {

proto::SpeedRecord RecordOf(double seconds, double measured, double predicted) {
  proto::SpeedRecord record;
  record.set_unix_seconds(seconds);
  record.set_device("cpu (avx2, 2 threads)");
  record.set_tokens_per_second(measured);
  record.set_predicted_tokens_per_second(predicted);
  return record;
}

class SpeedLogTest : public testing::Test {
 protected:
  std::vector<double> Measured() const {
    std::vector<double> all;
    for (const auto& record : log_.Read("cpu (avx2, 2 threads)")) {
      all.push_back(record.tokens_per_second());
    }
    return all;
  }
  // The file of the only record.
  std::string OnlyFile() const {
    const std::string folder = cache_.File("speed/cpu--avx2--2-threads-");
    const auto names = Env::Default()->List(folder);
    return names.ok() && names->size() == 1 ? JoinPath(folder, names->front()) : "";
  }

  tests::TempFolder cache_;
  const SpeedLog log_{Env::Default(), cache_.path()};
};

TEST_F(SpeedLogTest, KeepsRunsInTheirOrderByDevice) {
  EXPECT_THAT(Measured(), testing::IsEmpty());
  ASSERT_TRUE(log_.Add(RecordOf(200, 2, 3)).ok());
  ASSERT_TRUE(log_.Add(RecordOf(100, 1, 1)).ok());
  // Another device in the same folder.
  proto::SpeedRecord other = RecordOf(300, 9, 9);
  other.set_device("cpu (avx2; 2 threads)");
  ASSERT_TRUE(log_.Add(other).ok());
  EXPECT_THAT(Measured(), testing::ElementsAre(1, 2));
}

TEST_F(SpeedLogTest, KeepsTheNewest) {
  for (size_t i = 0; i < kSpeedRecords + 2; ++i) {
    ASSERT_TRUE(log_.Add(RecordOf(1e9 + double(i), double(i + 1), 1)).ok());
  }
  const std::vector<double> kept = Measured();
  ASSERT_EQ(kept.size(), kSpeedRecords);
  EXPECT_EQ(kept.front(), 3);
  EXPECT_EQ(kept.back(), double(kSpeedRecords + 2));
}

TEST_F(SpeedLogTest, LeavesOutWhatIsNoRecord) {
  ASSERT_TRUE(log_.Add(RecordOf(1, 1, 1)).ok());
  for (const char* contents : {"", "{", "[]", "{\"tokens_per_second\": \"many\"}",
                               "{\"device\": \"cpu (avx2, 2 threads)\", \"tokens_per_second\": 0}",
                               "{\"device\": \"cpu (avx2, 2 threads)\", \"tokens_per_second\": "
                               "\"NaN\", \"predicted_tokens_per_second\": 1}"}) {
    ASSERT_NE(OnlyFile(), "");
    ASSERT_TRUE(AtomicWriteFile(Env::Default(), OnlyFile(), contents).ok());
    EXPECT_THAT(Measured(), testing::IsEmpty()) << contents;
  }
  EXPECT_TRUE(log_.Add(RecordOf(1, 0, 1)).ok());
  EXPECT_NE(OnlyFile(), "") << "a run without a speed is none";
}

TEST_F(SpeedLogTest, RunsThatEndTogetherAreAllKept) {
  std::vector<std::thread> runs;
  for (int i = 0; i < 8; ++i) {
    runs.emplace_back([&, i] { EXPECT_TRUE(log_.Add(RecordOf(5, i + 1, 1)).ok()); });
  }
  for (std::thread& run : runs) run.join();
  EXPECT_THAT(Measured(), testing::UnorderedElementsAre(1, 2, 3, 4, 5, 6, 7, 8));
}

TEST(SpeedLog, WithoutAFolderHasNothing) {
  const SpeedLog none(Env::Default(), "");
  EXPECT_TRUE(none.Add(RecordOf(1, 1, 1)).ok());
  EXPECT_THAT(none.Read("cpu (avx2, 2 threads)"), testing::IsEmpty());
}

TEST(SpeedLog, AnErrorIsOneWhicheverWay) {
  EXPECT_EQ(MeanError({}), 0);
  EXPECT_DOUBLE_EQ(MeanError({RecordOf(1, 100, 150), RecordOf(2, 100, 80)}), (0.5 + 0.2) / 2);
}

}  // namespace
}  // namespace qlora::engine
