// Instruction sets of the CPU backend, and which of them this machine has.

#ifndef QLORA_KERNELS_CPU_ISA_H_
#define QLORA_KERNELS_CPU_ISA_H_

#include <vector>

namespace qlora::kernels::cpu {

// In rising order: each includes the ones before it. kAvx512 needs F, BW, DQ and VL; kAvx2 needs
// FMA and F16C too.
enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

const char* NameOf(Isa isa);
Isa BestIsa();
// All that run here, kPortable first.
std::vector<Isa> AvailableIsas();

}  // namespace qlora::kernels::cpu

#endif  // QLORA_KERNELS_CPU_ISA_H_
