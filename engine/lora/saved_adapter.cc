#include "engine/lora/saved_adapter.h"

#include <vector>

namespace qlora::engine {

absl::StatusOr<LoadedAdapter> ReadAdapterOf(Env* env, const std::string& folder,
                                            absl::Span<const AdaptedModule> modules) {
  std::vector<ExpectedModule> expected;
  for (const AdaptedModule& m : modules) {
    expected.push_back({.path = m.module, .in = m.in, .out = m.out});
  }
  return ReadAdapter(env, folder, expected);
}

}  // namespace qlora::engine
