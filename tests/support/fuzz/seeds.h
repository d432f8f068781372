// What the fuzzer begins with: small inputs that the parsers accept, from the same builders as the
// tests', and for each way to be wrong one that is.
#ifndef QLORA_TESTS_SUPPORT_FUZZ_SEEDS_H_
#define QLORA_TESTS_SUPPORT_FUZZ_SEEDS_H_

#include <filesystem>
#include <string>

#include "tests/support/faulty_env.h"

namespace qlora::tests {

// Between the parts of an input.
inline const std::string kNul(1, '\0');

// The folder of the corpus: a folder of each target in it.
class Seeds {
 public:
  explicit Seeds(std::filesystem::path corpus) : corpus_(std::move(corpus)) {}
  void Add(const std::string& target, const std::string& name, const std::string& contents) const;

 private:
  const std::filesystem::path corpus_;
};

std::string ReadBack(FaultyEnv* env, const std::string& path);

void AddModelSeeds(const Seeds& seeds);      // safetensors, model_config, index, quantized
void AddTokenizerSeeds(const Seeds& seeds);  // tokenizer
void AddDataSeeds(const Seeds& seeds);       // records
void AddJobSeeds(const Seeds& seeds);        // job
void AddRunSeeds(const Seeds& seeds);        // manifest, run_state, adapter, control

}  // namespace qlora::tests

#endif  // QLORA_TESTS_SUPPORT_FUZZ_SEEDS_H_
