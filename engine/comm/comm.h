// Collectives over device memory among the ranks of a job. One implementation a kind of link; all
// of them give the same bytes.
//
// Calls come in the same order on all ranks. A collective starts behind everything that the device
// was told before, returns before it is over, and runs beside what the device is told next; its
// memory is off limits until Await() or Finish(). They run one after another in the order in which
// they started, so that several may share their scratch. Errors: the abort's status where the job
// is aborted meanwhile, PeerLost where the link fails.

#ifndef QLORA_ENGINE_COMM_COMM_H_
#define QLORA_ENGINE_COMM_COMM_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/tensor.h"

namespace qlora::engine {

// Which part of a range is which rank's: rank r has [shares[r], shares[r + 1]).
using Shares = std::vector<int64_t>;

class Comm {
 public:
  virtual ~Comm() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // data[i] = the sum of all ranks' data[i] by a balanced tree over ranks: with a power of two of
  // them ((0 + 1) + (2 + 3)) + ..., so that the sums of one rank over the same terms are continued.
  // Each rank sums its equal share of the elements and gives it to the others: it sends
  // (size − 1)/size of the data twice, as little as any sum that leaves equal bytes everywhere.
  // f32 or f64; `scratch` has room for ScratchCount(count, size()) elements.
  absl::Status StartSum(kernels::DType dtype, void* data, void* scratch, int64_t count);
  // The first half of it: the same sums, each only where its rank has its share; elsewhere `data`
  // stays as it was. Shares are of elements; `scratch` has room for (size() − 1) · the own share.
  virtual absl::Status StartSumShares(kernels::DType dtype, void* data, void* scratch,
                                      const Shares& shares) = 0;
  // Bytes [shares[r], shares[r + 1]) of `all` become what rank r has at `mine`, which may lie there
  // already. Equal bytes on all ranks.
  virtual absl::Status StartAllGather(const void* mine, void* all, const Shares& shares) = 0;
  // All of `ranks` get the bytes of the first of them. Only they call it; no rank is named twice.
  virtual absl::Status StartBroadcast(void* data, int64_t bytes, absl::Span<const int> ranks) = 0;

  // How many collectives this rank has started so far: after a start, the number of that one.
  int64_t started() const { return started_; }
  // Waits for the collectives up to number `last`: what the device is told from now on finds their
  // results.
  virtual absl::Status Await(int64_t last) = 0;
  absl::Status Finish() { return Await(started_); }

  // `count` in `size` shares as equal as whole multiples of `unit` allow; the last one may end in
  // a part of a unit.
  static Shares EqualShares(int64_t count, int size, int64_t unit = 1);
  static int64_t ScratchCount(int64_t count, int size) {
    return (size - 1) * ((count + size - 1) / size);
  }

 protected:
  int64_t started_ = 0;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMM_COMM_H_
