// sm_90a's asynchronous instructions for the executor: barriers in shared memory, the copy engine,
// warpgroup products. Operands are read through their descriptors alone, by the definition of the
// PTX ISA, and nothing here knows how a kernel lays its memory out.
//
// Everything asynchronous happens as late as it may, and in between its memory is not to be relied
// on: a copy's destination holds NaNs from its start to its end, a product's operands must be the
// same when it is waited for as when it began, and what a thread wrote to shared memory itself must
// have passed a proxy fence before a product reads it.

#ifndef QLORA_TESTS_SUPPORT_SIMT_HOPPER_H_
#define QLORA_TESTS_SUPPORT_SIMT_HOPPER_H_

#include <array>
#include <cstdint>
#include <source_location>

#include "kernels/tensor.h"

namespace qlora::simt {

using Where = std::source_location;

// Where an element of a product's operand lies: `row` of the side's extent, `k` of 16, by
// descriptor. -1 where the descriptor is not one with 128-byte swizzle.
int64_t OperandAddress(uint64_t descriptor, bool mn_major, int row, int k);
// Which result [row, column] is register i of the warpgroup's thread.
std::array<int, 2> ResultOf(int thread, int i);

uint32_t SharedAddressOf(const void* data);
void BarrierInit(uint32_t barrier, int arrivals, const Where& where);
void BarrierArrive(uint32_t barrier, uint32_t announced_bytes, const Where& where);
void BarrierWait(uint32_t barrier, uint32_t parity, const Where& where);
void NamedBarrier(int number, int threads, const Where& where);
void TensorLoad(uint32_t to, const kernels::ConstTensor& matrix, int box_rows, int row, int column,
                uint32_t barrier, const Where& where);
void FenceAsyncProxy();
void StoreShared(uint32_t to, const void* data, const Where& where);  // 16 bytes
void LoadShared(uint32_t from, void* data, const Where& where);
void WarpgroupFence();
void WarpgroupMultiplyAdd(float* d, int count, uint64_t a, uint64_t b, bool a_mn_major,
                          const Where& where);
void WarpgroupCommit(const Where& where);
void WarpgroupWait(int pending, const Where& where);

}  // namespace qlora::simt

#endif  // QLORA_TESTS_SUPPORT_SIMT_HOPPER_H_
