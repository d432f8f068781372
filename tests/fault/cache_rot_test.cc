// The 4-bit base that quantize_cache keeps, cut short and with bits flipped, wherever: it is never
// loaded, is named, and the next run finds a whole one again.
#include <random>

#include "engine/io/manifest.h"
#include "engine/model/quantize_cache.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/loading_fixture.h"
#include "tests/support/fault_scale.h"
#include "tests/support/faulty_env.h"

namespace qlora::engine {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr int64_t kMostBytes = 1 << 24;
// Of so many damages one is also met by a run, which quantizes again.
constexpr int kMet = 20;

class CacheRot : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    // The cache is in memory, the model is not; its config.json is copied.
    ASSERT_TRUE(env_.CreateFolders(model_.folder()).ok());
    Put(model_.folder() + "/config.json", GoldenModelText("llama3_tied/config.json"));
    undamaged_ = Load();
    ASSERT_THAT(notes_, ElementsAre(HasSubstr("was written to " + Folder())));
    good_ = *env_.ReadFile(Path(), kMostBytes);
  }

  std::string Folder() { return QuantizeCachePath(Cache(), {}); }
  std::string Path() { return JoinPath(Folder(), GetParam()); }
  QuantizeCache Cache() { return {&env_, "cache", "base"}; }
  void Put(const std::string& path, const std::string& contents) {
    auto file = env_.NewWritableFile(path);
    ASSERT_TRUE(file.ok() && (*file)->Append(contents).ok() && (*file)->Sync().ok()) << path;
  }

  // The weights of a new run. `quantized_` tells how many of them were quantized on the way.
  std::map<std::string, std::string> Load() {
    TestRun run(model_, {});
    notes_.clear();
    const absl::Status status =
        LoadWeightsCached(Cache(), model_, run.execution.get(), {}, &notes_);
    EXPECT_TRUE(status.ok()) << status;
    quantized_ = run.device->runs("quantize");
    return run.Snapshot();
  }

  void ExpectNoticed(const std::string& damaged, const std::string& how) {
    if (HasFatalFailure()) return;
    Put(Path(), damaged);
    const absl::Status status = VerifyFolder(&env_, Folder()).status();
    ASSERT_EQ(status.code(), absl::StatusCode::kDataLoss) << how;
    ASSERT_THAT(std::string(status.message()), HasSubstr(GetParam())) << how;
    if (damages_++ % (tests::IsDeep() ? 1 : kMet) != 0) return;
    ASSERT_TRUE(Load() == undamaged_) << how;
    ASSERT_EQ(quantized_, 14) << how;
    ASSERT_THAT(notes_, ElementsAre(HasSubstr("is not used: "), HasSubstr("was written to")))
        << how;
    EXPECT_THAT(notes_[0], HasSubstr(GetParam())) << how;
    ASSERT_TRUE(*env_.ReadFile(Path(), kMostBytes) == good_) << how;
  }
  void ExpectFlipNoticed(size_t bit) {
    std::string damaged = good_;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    ExpectNoticed(damaged, absl::StrCat("bit ", bit, " flipped"));
  }

  tests::FaultyEnv env_;
  const ShardedModel model_ = OpenGolden("llama3_tied");
  std::map<std::string, std::string> undamaged_;
  std::string good_;
  std::vector<std::string> notes_;
  int quantized_ = -1, damages_ = 0;
};

TEST_P(CacheRot, IsNeverTrainedOn) {
  std::mt19937_64 random(tests::FaultSeed());
  for (size_t bit = 0; bit < 8 * 16; ++bit) ExpectFlipNoticed(bit);
  for (int i = 0; i < 1000; ++i) {
    ExpectFlipNoticed(random() % (8 * good_.size()));
    ExpectNoticed(good_.substr(0, random() % good_.size()), "cut");
  }
  Put(Path(), good_);
  EXPECT_TRUE(Load() == undamaged_);
  EXPECT_EQ(quantized_, 0);
}

INSTANTIATE_TEST_SUITE_P(Files, CacheRot,
                         testing::Values("model.safetensors", "config.json", "manifest.pb"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) c = std::isalnum(c) ? c : '_';
                           return name;
                         });

}  // namespace
}  // namespace qlora::engine
