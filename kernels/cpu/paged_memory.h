// Paged memory of the CPU backend: resident windows in memory, the others in a memory-mapped file
// without a name, whose pages are asked for ahead of use and given back after it. To lent slots
// windows are copied from the file, and back.

#ifndef QLORA_KERNELS_CPU_PAGED_MEMORY_H_
#define QLORA_KERNELS_CPU_PAGED_MEMORY_H_

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/paged_memory.h"

namespace qlora::kernels::cpu {

// The file's bytes are reserved at once, so that a full disk is found here and not at a window's
// first use. ResourceExhausted names the folder.
absl::StatusOr<std::unique_ptr<PagedMemory>> CreatePagedMemory(const PagedShape& shape);

}  // namespace qlora::kernels::cpu

#endif  // QLORA_KERNELS_CPU_PAGED_MEMORY_H_
