// What this machine does per second, measured at start, and the time of a list of ops by those
// rates.

#ifndef QLORA_ENGINE_PLAN_RATES_H_
#define QLORA_ENGINE_PLAN_RATES_H_

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/device.h"

namespace qlora::engine {

struct MachineRates {
  double matmul_flops = 0;  // FLOP/s of a dense product in the job's compute type
  double memory_bytes = 0;  // bytes/s moved by a stream that misses every cache
  double link_bytes = 0;  // bytes/s between device and host memory, each way; 0 where they are one
};

// Runs one product and one addition of long vectors on the device and copies to it where its memory
// is not the host's, about 0.2 s, and frees what it used. The best of several tries counts, of a
// slow device the first: a disturbance only slows.
absl::StatusOr<MachineRates> MeasureRates(kernels::Device& device, kernels::DType compute);

// Σ over ops of max(FLOP / rate, bytes / rate), what they would take if each ran at its bound, by
// which of the two it is.
struct BoundTime {
  double compute = 0, memory = 0;  // seconds
  double Seconds() const { return compute + memory; }
};
BoundTime BoundOf(absl::Span<const kernels::Op> ops, const MachineRates& rates);
double BoundSeconds(absl::Span<const kernels::Op> ops, const MachineRates& rates);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_PLAN_RATES_H_
