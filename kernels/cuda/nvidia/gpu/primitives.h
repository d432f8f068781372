// What a kernel may do, on NVIDIA hardware: every instruction that is not plain C++ goes through
// this header. tests/support/simt/gpu/primitives.h has the same names for the host, with checks.
//
// Rules that hold on both sides:
//   - Blocks are one-dimensional, a whole number of warps. All lanes of a warp take part in every
//     warp operation, all threads of a block in every SyncThreads().
//   - Shared memory is dynamic and reached through Shared<T> only. A Shared element is read into a
//     variable with its type written out (`const float x = tile[i];`), never into `auto`.
//   - Sums are not contracted (the compiler is told so): where a fused multiply-add is meant,
//     fmaf() stands.

#ifndef QLORA_KERNELS_CUDA_NVIDIA_GPU_PRIMITIVES_H_
#define QLORA_KERNELS_CUDA_NVIDIA_GPU_PRIMITIVES_H_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#define QLORA_KERNEL __global__
#define QLORA_DEVICE __device__ __forceinline__
#define QLORA_CONSTANT __constant__
// At most `threads` a block, at least `blocks` of them resident on a multiprocessor.
#define QLORA_LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define QLORA_UNROLL _Pragma("unroll")

namespace qlora::gpu {

// ---- Where a thread is

QLORA_DEVICE int ThreadX() { return int(threadIdx.x); }
QLORA_DEVICE int ThreadCount() { return int(blockDim.x); }
QLORA_DEVICE int64_t BlockX() { return blockIdx.x; }
QLORA_DEVICE int64_t BlockY() { return blockIdx.y; }
QLORA_DEVICE int64_t BlockZ() { return blockIdx.z; }
QLORA_DEVICE int64_t GridX() { return gridDim.x; }
QLORA_DEVICE int64_t GridY() { return gridDim.y; }
QLORA_DEVICE int Lane() { return int(threadIdx.x & 31u); }
QLORA_DEVICE int Warp() { return int(threadIdx.x >> 5); }

// ---- Together

QLORA_DEVICE void SyncThreads() { __syncthreads(); }
QLORA_DEVICE void SyncWarp() { __syncwarp(); }
// T of 4 or 8 bytes.
template <class T>
QLORA_DEVICE T Shuffle(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
template <class T>
QLORA_DEVICE T ShuffleXor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
QLORA_DEVICE uint32_t Ballot(bool bit) { return __ballot_sync(0xffffffffu, bit); }
// For counts only: integers, whose sum has no order.
QLORA_DEVICE void AtomicAdd(int32_t* to, int32_t value) { atomicAdd(to, value); }
QLORA_DEVICE void AtomicMax(uint32_t* to, uint32_t value) { atomicMax(to, value); }

// ---- Wide moves

struct alignas(16) Words4 {
  uint32_t w[4];
};
struct alignas(8) Words2 {
  uint32_t w[2];
};
// Reads what no thread of this launch writes and nobody reads again: past the first-level cache.
QLORA_DEVICE Words4 LoadStream(const Words4* from) {
  Words4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
               : "l"(from));
  return v;
}

// ---- Shared memory

template <class T>
struct Shared {
  T* data;
  QLORA_DEVICE T& operator[](int i) const { return data[i]; }
  QLORA_DEVICE Shared operator+(int i) const { return {data + i}; }
  // The same bytes as another type; alignment is the caller's care.
  template <class U>
  QLORA_DEVICE Shared<U> As() const {
    return {reinterpret_cast<U*>(data)};
  }
};

// Hands out the block's dynamic shared memory, front to back, the same way in every thread. The
// launch states the total: round each part up to 16 bytes.
class SharedMemory {
 public:
  template <class T>
  QLORA_DEVICE Shared<T> Take(int count) {
    extern __shared__ __align__(128) uint8_t qlora_shared_memory[];
    T* data = reinterpret_cast<T*>(qlora_shared_memory + used_);
    used_ += (count * int(sizeof(T)) + 15) & ~15;
    return {data};
  }

 private:
  int used_ = 0;
};

// ---- Bits and narrow formats

QLORA_DEVICE uint32_t BitsOf(float x) { return __float_as_uint(x); }
QLORA_DEVICE float FloatOf(uint32_t bits) { return __uint_as_float(bits); }
// Byte i of the result is the byte of {b, a} that nibble i of `selector` names (0..3 of a, 4..7 of
// b).
QLORA_DEVICE uint32_t BytePermute(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}
QLORA_DEVICE int CountLeadingZeros(uint32_t x) { return __clz(int(x)); }

QLORA_DEVICE float FromBf16(uint16_t bits) { return FloatOf(uint32_t(bits) << 16); }
// To nearest, ties to even. A NaN stays a NaN; its payload may change.
QLORA_DEVICE uint16_t ToBf16(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
// Two at once: `low` in the lower half.
QLORA_DEVICE uint32_t PackBf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
QLORA_DEVICE float FromF16(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
QLORA_DEVICE uint16_t ToF16(float x) { return __half_as_ushort(__float2half_rn(x)); }

// 2 ulp of the exact value, for arguments that are not positive: exponentials of softmax.
QLORA_DEVICE float FastExp(float x) { return __expf(x); }

// ---- Tensor cores and asynchronous copies (sm_80 and later)

// d[16×8] += a[16×16] · b[16×8], bf16 in, fp32 sums. Fragments as PTX ISA has them for m16n8k16:
// with g = lane / 4, t = lane % 4,
//   a[0]: row g, columns 2t, 2t+1;  a[1]: row g+8;  a[2]: row g, columns 2t+8, +9;  a[3]: row g+8
//   b[0]: rows 2t, 2t+1 of column g;  b[1]: rows 2t+8, 2t+9
//   d[0], d[1]: row g, columns 2t, 2t+1;  d[2], d[3]: row g+8.
QLORA_DEVICE void MatrixMultiplyAdd(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Four 8×8 matrices of 16-bit elements. Lane i gives the address of row i % 8 of matrix i / 8 (16
// bytes, 16-byte aligned) and receives of matrix j in r[j] its row lane / 4, elements 2·(lane % 4)
// and the next; transposed: its column lane / 4, rows 2·(lane % 4) and the next.
QLORA_DEVICE void LoadMatrix4(uint32_t (&r)[4], Shared<uint16_t> row) {
  const uint32_t address = uint32_t(__cvta_generic_to_shared(row.data));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
QLORA_DEVICE void LoadMatrix4Transposed(uint32_t (&r)[4], Shared<uint16_t> row) {
  const uint32_t address = uint32_t(__cvta_generic_to_shared(row.data));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// Copies 16 bytes from global to shared memory, both 16-byte aligned; zeros where not `valid`
// (`from` is then not read). Visible to the thread itself after CopyAsyncWait, to others after a
// barrier that follows it.
template <class T>
QLORA_DEVICE void CopyAsync16(Shared<T> to, const void* from, bool valid) {
  const uint32_t address = uint32_t(__cvta_generic_to_shared(to.data));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
// Closes a group of the copies begun since the last one.
QLORA_DEVICE void CopyAsyncCommit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `kPending` groups of this thread are still under way.
template <int kPending>
QLORA_DEVICE void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace qlora::gpu

#endif  // QLORA_KERNELS_CUDA_NVIDIA_GPU_PRIMITIVES_H_
