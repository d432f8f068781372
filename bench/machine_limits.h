// What this machine can do at most, measured: the marks that benchmarks are held against.

#ifndef QLORA_BENCH_MACHINE_LIMITS_H_
#define QLORA_BENCH_MACHINE_LIMITS_H_

#include <string>

#include "kernels/cpu/isa.h"

namespace qlora::bench {

struct MachineLimits {
  double flops_per_second = 0;  // fp32 fused multiply-adds on `threads` threads, from registers
  double read_bytes_per_second = 0;  // sequential reads of 256 MB by `threads` threads
};

// Takes about a second; the best of several short runs, for neighbours on a shared machine only
// ever slow it down.
MachineLimits MeasureLimits(kernels::cpu::Isa isa, int threads);

// As /proc/cpuinfo names it.
std::string CpuModel();

}  // namespace qlora::bench

#endif  // QLORA_BENCH_MACHINE_LIMITS_H_
