// Bits that flip in memory without a word. Frozen weights must stay as they were loaded; what is
// trained must be the same on all ranks, which add up the same gradients. Both are looked at every
// kIntegritySteps steps and before every checkpoint, so that none is saved from a spoiled state.

#ifndef QLORA_ENGINE_STEP_INTEGRITY_H_
#define QLORA_ENGINE_STEP_INTEGRITY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/comm/ranks.h"
#include "engine/step/execution.h"

namespace qlora::engine {

// Reading 4 GB of weights takes half a second: nothing beside a hundred steps of such a model.
inline constexpr int64_t kIntegritySteps = 100;

class Integrity {
 public:
  // Takes the checksums of the frozen weights, which are loaded. `ranks`: null where this is the
  // only one; else all call it, and BadData names those that have loaded something else than the
  // majority. Both must outlive it.
  static absl::StatusOr<Integrity> Create(Execution* execution, Ranks* ranks);

  // NumbersBad naming the tensor that has changed, or the ranks whose parameters are not those of
  // the majority. All ranks call it behind the same step.
  absl::Status Check(int64_t step);

 private:
  struct Frozen {
    std::string name;
    kernels::ConstTensor view;
    bool is_share = false;  // each rank has one of its own
    uint32_t checksum = 0;
  };
  Integrity(Execution* execution, Ranks* ranks) : execution_(execution), ranks_(ranks) {}
  absl::Status CompareLoaded();
  absl::Status CheckFrozen();
  absl::Status CompareTrained(int64_t step);

  Execution* execution_;
  Ranks* ranks_;
  std::vector<Frozen> frozen_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_STEP_INTEGRITY_H_
