#include "engine/checkpoint/output_names.h"

#include <gtest/gtest.h>

namespace qlora::engine {
namespace {

TEST(OutputNames, AreThoseThatCommandsGive) {
  for (const char* name :
       {"checkpoint-4", "runs", "drift", "merge", "quantized", "adapter_model.safetensors",
        "config.json", "generation_config.json", "tokenizer.json", "model.safetensors",
        "model-00001-of-00002.safetensors", "model.safetensors.index.json", "metrics.jsonl",
        "sweep_report.html", "plan_report.txt", ".run.lock", ".tmp-x"}) {
    EXPECT_TRUE(IsOutputName(name)) << name;
  }
  for (const char* name : {"merged", "merged.json", "model", "model-a-of-b.safetensors", "model-7b",
                           "checkpoint", "orders", "drifts", ""}) {
    EXPECT_FALSE(IsOutputName(name)) << name;
  }
}

}  // namespace
}  // namespace qlora::engine
