// The CPU implementation of every op: one file each, named after the op's header.

#ifndef QLORA_KERNELS_CPU_OPS_H_
#define QLORA_KERNELS_CPU_OPS_H_

#include "kernels/cpu/isa.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/op_list.h"

namespace qlora::kernels::cpu {

struct Context {
  ThreadPool& pool;
  Isa isa;
};

// Runs the op to its end. An op of op_list.h that no file defines is a link error.
#define QLORA_DECLARE_RUN(OpType) void Run(const OpType& op, const Context& context);
QLORA_FOR_EACH_OP(QLORA_DECLARE_RUN)
#undef QLORA_DECLARE_RUN

// Bytes of `workspace` for ops that have one; a function of shapes, types and instruction set
// alone.
#define QLORA_DECLARE_WORKSPACE(OpType) int64_t WorkspaceBytes(const OpType& op, Isa isa);
QLORA_FOR_EACH_OP(QLORA_DECLARE_WORKSPACE)
#undef QLORA_DECLARE_WORKSPACE

}  // namespace qlora::kernels::cpu

#endif  // QLORA_KERNELS_CPU_OPS_H_
