#include "engine/io/json_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/support/faulty_env.h"

namespace qlora::engine {
namespace {

using ::testing::HasSubstr;

std::string Refused(const std::string& text) {
  const auto status = ParseJson(text, "cfg").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text.substr(0, 40);
  EXPECT_THAT(std::string(status.message()), HasSubstr("cfg"));
  return std::string(status.message());
}

TEST(ParseJsonTest, Reads) {
  auto json = ParseJson(R"({"a":[1,2.5,"x"],"b":{"a":null}})", "cfg");
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_EQ((*json)["a"][1], 2.5);
  EXPECT_TRUE((*json)["b"]["a"].is_null());
}

TEST(ParseJsonTest, RefusesWithThePlace) {
  EXPECT_THAT(Refused(R"({"a":1,"a":2})"), HasSubstr("\"a\" occurs twice"));
  EXPECT_THAT(Refused(R"({"x":[{"a":1,"a":2}]})"), HasSubstr("occurs twice"));
  EXPECT_THAT(Refused("{\"a\": tru}"), HasSubstr("byte 10"));
  EXPECT_THAT(Refused("{\"\xff\":1}"), HasSubstr("UTF-8"));
  EXPECT_THAT(Refused(std::string(65, '[') + std::string(65, ']')), HasSubstr("deeper than 64"));
  EXPECT_THAT(Refused(std::string(1'000'000, '[')), HasSubstr("deeper than 64"));
  Refused("");
  Refused("{} {}");
  Refused("{\"a\":NaN}");
  Refused("{\"a\":1e999}");
  Refused("{\"a\":01}");
  EXPECT_TRUE(ParseJson(std::string(64, '[') + std::string(64, ']'), "cfg").ok());
}

TEST(ReadJsonFileTest, BoundsAndNamesTheFile) {
  tests::FaultyEnv env;
  auto file = env.NewWritableFile("c.json");
  ASSERT_TRUE((*file)->Append(absl::string_view("{\"a\":1}")).ok());
  EXPECT_EQ((*ReadJsonFile(&env, "c.json"))["a"], 1);
  EXPECT_FALSE(ReadJsonFile(&env, "c.json", 6).ok());
  EXPECT_EQ(ReadJsonFile(&env, "d.json").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace qlora::engine
