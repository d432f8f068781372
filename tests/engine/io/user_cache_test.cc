#include "engine/io/user_cache.h"

#include "gtest/gtest.h"

namespace qlora::engine {
namespace {

TEST(UserCache, IsWhereTheSpecificationSays) {
  const auto with = [](const std::string& cache, const std::string& home) {
    return UserCacheFolder([&](const char* name) {
      return std::string(name) == "XDG_CACHE_HOME" ? cache
             : std::string(name) == "HOME"         ? home
                                                   : "";
    });
  };
  EXPECT_EQ(with("/c", "/h"), "/c/qlora_engine");
  EXPECT_EQ(with("", "/h"), "/h/.cache/qlora_engine");
  EXPECT_EQ(with("relative", "/h"), "/h/.cache/qlora_engine");
  EXPECT_EQ(with("", ""), "");
}

}  // namespace
}  // namespace qlora::engine
