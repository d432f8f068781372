// Writes what the fuzzer begins with: fuzz_seeds tests/fuzz/corpus.
#include <cstdio>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "tests/support/fuzz/seeds.h"

namespace qlora::tests {

namespace fs = std::filesystem;

void Seeds::Add(const std::string& target, const std::string& name,
                const std::string& contents) const {
  fs::create_directories(corpus_ / target);
  std::ofstream(corpus_ / target / absl::StrCat("seed_", name), std::ios::binary) << contents;
}

std::string ReadBack(FaultyEnv* env, const std::string& path) {
  return *env->ReadFile(path, 1 << 20);
}

}  // namespace qlora::tests

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: fuzz_seeds FOLDER\n");
    return 64;
  }
  const qlora::tests::Seeds seeds(argv[1]);
  qlora::tests::AddModelSeeds(seeds);
  qlora::tests::AddTokenizerSeeds(seeds);
  qlora::tests::AddDataSeeds(seeds);
  qlora::tests::AddJobSeeds(seeds);
  qlora::tests::AddRunSeeds(seeds);
}
