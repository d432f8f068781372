#include "kernels/paged_memory.h"

namespace qlora::kernels {

bool PagedShape::AreNeighbours(int64_t w) const {
  if (w + 1 >= windows || IsResident(w) != IsResident(w + 1)) return false;
  if (IsResident(w) || slots == 0) return true;
  // Windows that take turns in their slots are never all there.
  if (!IsLent() || windows - resident > slots) return false;
  return lent_offsets[SlotOf(w + 1)] == lent_offsets[SlotOf(w)] + window_bytes;
}

}  // namespace qlora::kernels
