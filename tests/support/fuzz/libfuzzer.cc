// The entry points of libFuzzer. Which target it drives is told by the environment, so that all of
// them are one program: QLORA_FUZZ_TARGET=job fuzz_targets CORPUS...
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/fuzz/fuzz_target.h"

namespace {

const qlora::tests::FuzzTarget* target = nullptr;

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  const char* const name = std::getenv("QLORA_FUZZ_TARGET");
  for (const auto& t : qlora::tests::FuzzTargets()) {
    if (name != nullptr && std::strcmp(t.name, name) == 0) target = &t;
  }
  if (target != nullptr) return 0;
  std::fprintf(stderr, "set QLORA_FUZZ_TARGET to one of:");
  for (const auto& t : qlora::tests::FuzzTargets()) std::fprintf(stderr, " %s", t.name);
  std::fprintf(stderr, "\n");
  std::exit(64);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  target->run({reinterpret_cast<const char*>(data), size});
  return 0;
}
