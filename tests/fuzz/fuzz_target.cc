#include "tests/fuzz/fuzz_target.h"

#include <cstdio>
#include <cstdlib>

namespace qlora::tests {

const std::vector<FuzzTarget>& FuzzTargets() {
  static const auto* const kTargets = new std::vector<FuzzTarget>{
      {"safetensors", FuzzSafetensors},
      {"model_config", FuzzModelConfig},
      {"index", FuzzIndex},
      {"tokenizer", FuzzTokenizer},
      {"records", FuzzRecords},
      {"job", FuzzJob},
      {"manifest", FuzzManifest},
      {"run_state", FuzzRunState},
      {"adapter", FuzzAdapter},
      {"quantized", FuzzQuantized},
      {"control", FuzzControl},
      {"result_sums", FuzzResultSums},
  };
  return *kTargets;
}

void Require(bool kept, const char* what) {
  if (kept) return;
  std::fprintf(stderr, "broken promise: %s\n", what);
  std::abort();
}

absl::string_view TakeText(absl::string_view* input) {
  const absl::string_view text = input->substr(0, input->find('\0'));
  input->remove_prefix(std::min(input->size(), text.size() + 1));
  return text;
}

uint8_t TakeByte(absl::string_view* input) {
  if (input->empty()) return 0;
  const auto byte = static_cast<uint8_t>(input->front());
  input->remove_prefix(1);
  return byte;
}

void PutFile(FaultyEnv* env, const std::string& path, absl::string_view contents) {
  Require(env->CreateFolders(engine::ParentPath(path)).ok(), "a folder in memory");
  auto file = env->NewWritableFile(path);
  Require(file.ok() && (*file)->Append(contents).ok() && (*file)->Close().ok(), "a file in memory");
}

}  // namespace qlora::tests
