#include "engine/commands/logits_file.h"

#include "engine/io/safetensors.h"
#include "gtest/gtest.h"
#include "tests/support/faulty_env.h"

namespace qlora::engine {
namespace {

constexpr int64_t kVocab = 3;

TEST(LogitsFileTest, TakesBatchesAsTheyComeAndKeepsNone) {
  // More than ten: by name "logits.10" stands before "logits.2".
  Dataset data;
  for (int i = 0; i < 12; ++i) {
    const size_t tokens = size_t(2 + i % 3);
    data.samples.push_back(
        {.ids = std::vector<int32_t>(tokens, i), .trained = std::vector<uint8_t>(tokens, 1)});
  }
  const Batcher batcher(&data, {.rows_per_micro_batch = 5, .shuffle = false});
  tests::FaultyEnv env;
  ASSERT_TRUE(env.CreateFolder("out").ok());
  absl::StatusOr<LogitsFile> file = LogitsFile::Create(&env, "out/logits", data, kVocab);
  ASSERT_TRUE(file.ok()) << file.status();
  const std::string unfinished = JoinPath("out", env.List("out")->front());
  int64_t size = *env.FileSize(unfinished);
  for (int64_t step = 0; step < batcher.StepsOf(1); ++step) {
    for (const MicroBatch& batch : batcher.Step(step)) {
      std::vector<float> logits;
      for (const int32_t id : batch.ids) logits.insert(logits.end(), kVocab, float(id));
      ASSERT_TRUE(file->Take(batch, logits).ok());
      size += int64_t(logits.size()) * 4;
      EXPECT_EQ(*env.FileSize(unfinished), size);
    }
  }
  ASSERT_TRUE(file->Finish().ok());
  const absl::StatusOr<SafetensorsFile> read = SafetensorsFile::Open(&env, "out/logits");
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->tensors().size(), data.samples.size());
  for (size_t i = 0; i < data.samples.size(); ++i) {
    const TensorInfo* const info = read->Find("logits." + std::to_string(i));
    ASSERT_NE(info, nullptr) << i;
    EXPECT_EQ(info->shape, (std::vector<int64_t>{int64_t(data.samples[i].ids.size()), kVocab}));
    const auto* const values = reinterpret_cast<const float*>(read->data(*info));
    EXPECT_EQ(values[0], float(i));
    EXPECT_EQ(values[info->bytes / 4 - 1], float(i));
  }
}

}  // namespace
}  // namespace qlora::engine
