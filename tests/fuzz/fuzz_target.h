// A parser and how it is fed with arbitrary bytes. libFuzzer makes them up (tools/fuzz.sh); the
// ordinary tests replay what it found, tests/fuzz/corpus/<name>/.
//
// A target must come back from any input. Where the parser accepts one, the target looks at what
// it promises then.
#ifndef QLORA_TESTS_FUZZ_FUZZ_TARGET_H_
#define QLORA_TESTS_FUZZ_FUZZ_TARGET_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "tests/support/faulty_env.h"

namespace qlora::tests {

struct FuzzTarget {
  const char* name;  // of its corpus too
  void (*run)(absl::string_view input);
};

const std::vector<FuzzTarget>& FuzzTargets();

void FuzzSafetensors(absl::string_view input);  // a file
void FuzzModelConfig(absl::string_view input);  // config.json, generation_config.json
void FuzzIndex(absl::string_view input);        // model.safetensors.index.json or, behind it, the
                                                // lone model.safetensors
void FuzzTokenizer(absl::string_view input);    // tokenizer.json, tokenizer_config.json, a text
void FuzzRecords(absl::string_view input);      // format and settings (a byte), data.jsonl
void FuzzJob(absl::string_view input);          // job.textproto, a --set override
void FuzzManifest(absl::string_view input);     // kind (a byte), manifest.pb or what it holds
void FuzzResultSums(absl::string_view input);   // SHA256SUMS
void FuzzRunState(absl::string_view input);     // run_state.pb
void FuzzAdapter(absl::string_view input);      // adapter_config.json, adapter_model.safetensors
void FuzzQuantized(absl::string_view input);    // a quant_state, changes to the tensors beside it
void FuzzControl(absl::string_view input);      // a stream of control messages

// A broken promise: ends the process with `what`.
void Require(bool kept, const char* what);

// The input up to the next NUL, which no text that is parsed here may hold; the rest stays.
absl::string_view TakeText(absl::string_view* input);
// The next byte, 0 at the end.
uint8_t TakeByte(absl::string_view* input);

// Puts a file into a disk in memory; the folder is created.
void PutFile(FaultyEnv* env, const std::string& path, absl::string_view contents);

}  // namespace qlora::tests

#endif  // QLORA_TESTS_FUZZ_FUZZ_TARGET_H_
