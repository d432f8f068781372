// The 4-bit bases that released versions kept, tests/golden/caches/<version>/: each is loaded, with
// the bytes that quantizing gives now. A new version adds its own:
//   QLORA_WRITE_GOLDEN=1 fault_tests --gtest_filter='GoldenCache.*'
#include <cstdlib>
#include <filesystem>

#include "engine/model/quantize_cache.h"
#include "engine/version.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/io/temp_folder.h"
#include "tests/engine/model/loading_fixture.h"
#include "tests/support/paths.h"

namespace qlora::engine {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

const fs::path kFolder = fs::path(tests::TestsDir()) / "golden/caches";

TEST(GoldenCache, OfEveryVersionIsLoadedAsItIs) {
  const ShardedModel model = OpenGolden("llama3_tied");
  TestRun quantized(model, {});
  std::vector<std::string> notes;
  if (std::getenv("QLORA_WRITE_GOLDEN") != nullptr) {
    const QuantizeCache cache{Env::Default(), kFolder / kEngineVersion, "base"};
    ASSERT_TRUE(LoadWeightsCached(cache, model, quantized.execution.get(), {}, &notes).ok());
  } else {
    ASSERT_TRUE(quantized.Load(model).ok());
  }
  int versions = 0;
  for (const auto& version : fs::directory_iterator(kFolder)) {
    SCOPED_TRACE(version.path());
    // A copy: one that is refused would be written anew.
    const tests::TempFolder folder;
    fs::copy(version.path(), folder.path(), fs::copy_options::recursive);
    TestRun run(model, {});
    notes.clear();
    const QuantizeCache cache{Env::Default(), folder.path(), "base"};
    ASSERT_TRUE(LoadWeightsCached(cache, model, run.execution.get(), {}, &notes).ok());
    EXPECT_THAT(notes, ElementsAre(HasSubstr("was loaded from")));
    EXPECT_EQ(run.device->runs("quantize"), 0);
    EXPECT_TRUE(run.Snapshot() == quantized.Snapshot());
    ++versions;
  }
  EXPECT_GE(versions, 1);
}

}  // namespace
}  // namespace qlora::engine
