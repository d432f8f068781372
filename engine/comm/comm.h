// Collectives over device memory among the ranks of a job. One implementation a kind of link; all
// of them give the same bytes.
//
// Calls come in the same order on all ranks. A collective starts behind everything that the device
// was told before, returns before it is over, and runs beside what the device is told next; its
// memory is off limits until Finish(). Errors: the abort's status where the job is aborted
// meanwhile, PeerLost where the link fails.

#ifndef QLORA_ENGINE_COMM_COMM_H_
#define QLORA_ENGINE_COMM_COMM_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/tensor.h"

namespace qlora::engine {

class Comm {
 public:
  virtual ~Comm() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // data[i] = the sum of all ranks' data[i] by a balanced tree over ranks: with a power of two of
  // them ((0 + 1) + (2 + 3)) + ..., so that the sums of one rank over the same terms are continued.
  // Each rank sums its share of the elements and gives it to the others. f32 or f64; `scratch` has
  // room for ScratchCount(count, size()) elements. Equal bytes on all ranks.
  virtual absl::Status StartSum(kernels::DType dtype, void* data, void* scratch, int64_t count) = 0;
  // Everyone gets rank `root`'s bytes.
  virtual absl::Status StartBroadcast(void* data, int64_t bytes, int root) = 0;
  // Waits for the collectives started: what the device is told from now on finds their results.
  virtual absl::Status Finish() = 0;

  // The elements that rank `rank` sums: [ShareBegin(rank), ShareBegin(rank + 1)).
  static int64_t ShareBegin(int64_t count, int size, int rank) {
    const int64_t share = (count + size - 1) / size;
    return share * rank < count ? share * rank : count;
  }
  static int64_t ScratchCount(int64_t count, int size) {
    return (size - 1) * ((count + size - 1) / size);
  }
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMM_COMM_H_
