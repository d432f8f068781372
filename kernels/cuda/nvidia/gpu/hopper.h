// What only sm_90a can do, beyond primitives.h: barriers in shared memory, the tensor copy engine,
// warpgroup products. tests/support/simt/gpu/hopper.h has the same names for the host.
//
// Shared memory is named by its address here, as the instructions want it. On other architectures
// kHasWarpgroups is false and a kernel must call none of this.

#ifndef QLORA_KERNELS_CUDA_NVIDIA_GPU_HOPPER_H_
#define QLORA_KERNELS_CUDA_NVIDIA_GPU_HOPPER_H_

#include <cstdint>

#include "gpu/primitives.h"
#include "gpu/tensor_map.h"

#define QLORA_GRID_CONSTANT __grid_constant__

namespace qlora::gpu {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
inline constexpr bool kHasWarpgroups = true;
#else
inline constexpr bool kHasWarpgroups = false;
#endif

using SharedAddress = uint32_t;
template <class T>
QLORA_DEVICE SharedAddress AddressOf(Shared<T> s) {
  return uint32_t(__cvta_generic_to_shared(s.data));
}

// ---- Barriers: a phase ends when all arrivals have come and all announced bytes have landed

QLORA_DEVICE void BarrierInit(SharedAddress barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// By the thread that initialised, before the block's barrier that shows them to all.
QLORA_DEVICE void BarrierInitFence() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
QLORA_DEVICE void BarrierArrive(SharedAddress barrier) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
#endif
}
// Arrives, and announces bytes of the copy engine for this phase.
QLORA_DEVICE void BarrierArriveExpect(SharedAddress barrier, uint32_t bytes) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
#endif
}
// Until the phase of this parity has ended; of a new barrier, that of parity 1 has.
QLORA_DEVICE void BarrierWait(SharedAddress barrier, uint32_t parity) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  uint32_t done;
  do {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.b32 %0, 1, 0, p;\n"
        "}\n"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (done == 0);
#endif
}
// Among `threads` of the block, a multiple of 32; numbers 1 to 15.
QLORA_DEVICE void NamedBarrier(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// ---- The copy engine

// Starts the copy of one box, its first element at (row, column); its bytes count at the barrier,
// those outside the matrix included.
QLORA_DEVICE void TensorLoad(SharedAddress to, const TensorMap& map, int row, int column,
                             SharedAddress barrier) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(to),
      "l"(&map.native), "r"(barrier), "r"(column), "r"(row)
      : "memory");
#endif
}
// Orders this thread's own writes to shared memory before what the tensor cores and the copy engine
// do with them after the next barrier.
QLORA_DEVICE void FenceAsyncProxy() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// ---- Moves within shared memory, 16 bytes each

QLORA_DEVICE void StoreShared(SharedAddress to, const Words4& v) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.w[0]), "r"(v.w[1]),
               "r"(v.w[2]), "r"(v.w[3])
               : "memory");
}
QLORA_DEVICE Words4 LoadShared(SharedAddress from) {
  Words4 v;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
               : "r"(from)
               : "memory");
  return v;
}
// Four 8×8 matrices, as LoadMatrix4Transposed has them: from shared memory, and to it.
QLORA_DEVICE void LoadTransposed(uint32_t (&r)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}
QLORA_DEVICE void StoreTransposed(SharedAddress row, const uint32_t (&r)[4]) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(row),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
#endif
}

// ---- Warpgroups: four warps, the first of them a multiple of four

// How many registers a thread of this warpgroup may have from here on; a multiple of 8.
template <int kRegisters>
QLORA_DEVICE void RegistersDown() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}
template <int kRegisters>
QLORA_DEVICE void RegistersUp() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

// Orders what was done to the sums' registers before the products that follow.
QLORA_DEVICE void WarpgroupFence() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
// Closes a group of products.
QLORA_DEVICE void WarpgroupCommit() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Until at most `kPending` groups are under way. The sums are an operand, so that what reads them
// stays behind the wait.
template <int kPending, int kCount>
QLORA_DEVICE void WarpgroupWait(float (&d)[kCount]) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  if constexpr (kPending == 0) {
    QLORA_UNROLL
    for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
  }
#endif
}

#define QLORA_D8(i)                                                                           \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define QLORA_D64(i)                                                                  \
  QLORA_D8(i), QLORA_D8(i + 8), QLORA_D8(i + 16), QLORA_D8(i + 24), QLORA_D8(i + 32), \
      QLORA_D8(i + 40), QLORA_D8(i + 48), QLORA_D8(i + 56)
#define QLORA_NAMES_0_63                                                                     \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"   \
  "%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45," \
  "%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define QLORA_NAMES_64_127                                                                   \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85," \
  "%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,"   \
  "%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,"    \
  "%123,%124,%125,%126,%127"

// d[64×N] += a[64×16] · b[N×16]ᵀ, N = 2 · kCount, as m64nNk16 shares d out; bf16 operands by
// descriptor: a K-major or, where `kTransposeA`, MN-major; b K-major.
template <bool kTransposeA, int kCount>
QLORA_DEVICE void WarpgroupMultiplyAdd(float (&d)[kCount], uint64_t a, uint64_t b) {
  static_assert(kCount == 64 || kCount == 128);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if constexpr (kCount == 128) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.eq.u32 p, 0, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" QLORA_NAMES_0_63
        "," QLORA_NAMES_64_127
        "}, %128, %129, p, 1, 1, %130, 0;\n"
        "}\n"
        : QLORA_D64(0), QLORA_D64(64)
        : "l"(a), "l"(b), "n"(int(kTransposeA)));
  } else {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.eq.u32 p, 0, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" QLORA_NAMES_0_63
        "}, %64, %65, p, 1, 1, %66, 0;\n"
        "}\n"
        : QLORA_D64(0)
        : "l"(a), "l"(b), "n"(int(kTransposeA)));
  }
#endif
}

#undef QLORA_D8
#undef QLORA_D64
#undef QLORA_NAMES_0_63
#undef QLORA_NAMES_64_127

}  // namespace qlora::gpu

#endif  // QLORA_KERNELS_CUDA_NVIDIA_GPU_HOPPER_H_
