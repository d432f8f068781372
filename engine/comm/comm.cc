#include "engine/comm/comm.h"

#include <algorithm>

namespace qlora::engine {

absl::Status Comm::StartSum(kernels::DType dtype, void* data, void* scratch, int64_t count) {
  Shares shares = EqualShares(count, size());
  if (absl::Status s = StartSumShares(dtype, data, scratch, shares); !s.ok()) return s;
  for (int64_t& begin : shares) begin *= kernels::SizeOf(dtype);
  return StartAllGather(static_cast<uint8_t*>(data) + shares[rank()], data, shares);
}

Shares Comm::EqualShares(int64_t count, int size, int64_t unit) {
  const int64_t units = (count + unit - 1) / unit;
  Shares shares(size + 1);
  for (int r = 0; r <= size; ++r) shares[r] = std::min(units * r / size * unit, count);
  return shares;
}

}  // namespace qlora::engine
