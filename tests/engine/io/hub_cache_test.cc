#include "engine/io/hub_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <map>
#include <string>

#include "tests/engine/io/temp_folder.h"

namespace qlora::engine {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using tests::TempFolder;

std::string CacheOf(std::map<std::string, std::string> variables) {
  return HubCacheFolder([&](const char* name) { return variables[name]; });
}

TEST(HubCacheTest, FindsTheCacheAsTheHubDoes) {
  EXPECT_EQ(CacheOf({{"HF_HUB_CACHE", "/c"}, {"HF_HOME", "/h"}, {"HOME", "/u"}}), "/c");
  EXPECT_EQ(CacheOf({{"HUGGINGFACE_HUB_CACHE", "/o"}, {"HF_HOME", "/h"}}), "/o");
  EXPECT_EQ(CacheOf({{"HF_HOME", "/h"}, {"XDG_CACHE_HOME", "/x"}}), "/h/hub");
  EXPECT_EQ(CacheOf({{"XDG_CACHE_HOME", "/x"}, {"HOME", "/u"}}), "/x/huggingface/hub");
  EXPECT_EQ(CacheOf({{"HOME", "/u"}}), "/u/.cache/huggingface/hub");
  EXPECT_EQ(CacheOf({}), "");
}

class ResolveModelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    Env* env = Env::Default();
    ASSERT_TRUE(env->CreateFolders(cache_.File("models--org--name/refs/refs/pr")).ok());
    ASSERT_TRUE(env->CreateFolders(cache_.File("models--org--name/snapshots/c0ffee")).ok());
    ASSERT_TRUE(env->CreateFolders(cache_.File("models--org--name/snapshots/empty")).ok());
    ASSERT_TRUE(cache_.Write("models--org--name/refs/main", "c0ffee\n").ok());
    ASSERT_TRUE(cache_.Write("models--org--name/refs/part", "empty").ok());
    ASSERT_TRUE(cache_.Write("models--org--name/refs/refs/pr/3", "c0ffee").ok());
    ASSERT_TRUE(cache_.Write("models--org--name/refs/evil", "../../../etc").ok());
    ASSERT_TRUE(cache_.Write("blob", "{}").ok());
    ASSERT_EQ(::symlink("../../../blob",
                        cache_.File("models--org--name/snapshots/c0ffee/config.json").c_str()),
              0);
  }
  absl::StatusOr<std::string> Resolve(const std::string& model) {
    return ResolveModel(Env::Default(), model, cache_.path());
  }

  TempFolder cache_;
};

TEST_F(ResolveModelTest, FoldersAndIds) {
  const std::string snapshot = cache_.File("models--org--name/snapshots/c0ffee");
  EXPECT_EQ(*Resolve(cache_.path()), cache_.path());
  EXPECT_EQ(*Resolve("org/name"), snapshot);
  EXPECT_EQ(*Resolve("org/name@main"), snapshot);
  EXPECT_EQ(*Resolve("org/name@c0ffee"), snapshot);
  EXPECT_EQ(*Resolve("org/name@refs/pr/3"), snapshot);
}

TEST_F(ResolveModelTest, WhatIsMissingComesWithItsCommand) {
  const auto absent = Resolve("org/other").status();
  EXPECT_EQ(absent.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(absent.message(), HasSubstr("hf download org/other "));
  EXPECT_THAT(absent.message(), HasSubstr("huggingface-cli download org/other)"));
  EXPECT_THAT(absent.message(), HasSubstr(cache_.File("models--org--other")));
  EXPECT_THAT(Resolve("org/name@v2").status().message(),
              HasSubstr("hf download org/name --revision v2 "));
  const auto part = Resolve("org/name@part").status();
  EXPECT_EQ(part.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(part.message(), HasSubstr("only in part"));
  EXPECT_THAT(ResolveModel(Env::Default(), "org/name", "").status().message(),
              HasSubstr("HF_HUB_CACHE"));
}

TEST_F(ResolveModelTest, WhatIsNoIdNeverLeavesTheCache) {
  for (const char* model : {"/no/such/folder", "./x", "../org/name", "a/b/c", "org/../name", "org/",
                            "/name", "org/na me", "org/name@", "org/name@../../blob",
                            "org/name@/etc", "-x/name", "org/a--b", "org/a..b"}) {
    const auto status = Resolve(model).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << model;
    EXPECT_THAT(status.message(), HasSubstr("can't be a hub id")) << model;
    EXPECT_THAT(status.message(), Not(HasSubstr("hf download"))) << model;
  }
  EXPECT_EQ(Resolve("org/name@evil").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Resolve("").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace qlora::engine
