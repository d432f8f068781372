#include "proto/memory_size.h"

#include <limits>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qlora::proto {
namespace {

TEST(MemorySizeTest, UnitsAndFractions) {
  const std::pair<const char*, int64_t> cases[] = {
      {"1B", 1},
      {"8GiB", int64_t{8} << 30},
      {"500MB", 500'000'000},
      {"1.5GB", 1'500'000'000},
      {" 2 KiB ", 2048},
      {"3kb", 3000},
      {"0.5MiB", 524288},
      {".5kB", 500},
      {"1TB", 1'000'000'000'000},
      {"1tib", int64_t{1} << 40},
      {"1.9B", 1},
      {"9007199254740993B", 9007199254740993},  // a double holds only its neighbours
      {"9223372036854775807B", std::numeric_limits<int64_t>::max()},
  };
  for (const auto& [text, bytes] : cases) {
    const auto parsed = ParseMemorySize(text);
    ASSERT_TRUE(parsed.ok()) << text << ": " << parsed.status();
    EXPECT_EQ(*parsed, bytes) << text;
  }
}

TEST(MemorySizeTest, RefusesWhatIsNoSize) {
  for (const char* text : {"",
                           " ",
                           "8",
                           "GiB",
                           "8 Gi",
                           "8G",
                           "-1GB",
                           "+1GB",
                           "1e3MB",
                           "0B",
                           "0GiB",
                           "0.5B",
                           "1.2.3MB",
                           "1,5GB",
                           "9223372036854775808B",
                           "8388608TiB",
                           "99999999999999999999B",
                           "nanGB",
                           "infGB",
                           "8GiBx",
                           "8\x01GiB"}) {
    const auto parsed = ParseMemorySize(text);
    ASSERT_FALSE(parsed.ok()) << text;
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(parsed.status().message()), ::testing::HasSubstr("allowed: a number"));
  }
}

}  // namespace
}  // namespace qlora::proto
