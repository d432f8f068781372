// The vendor library's door for the host: the plain sum, in fp32 and in order.

#include "kernels/cuda/dense_matmul.h"

#include "gpu/launch.h"
#include "gpu/primitives.h"
#include "kernels/cuda/elements.h"

namespace qlora::gpu {
namespace {

using kernels::cuda::Bf16;
using kernels::cuda::Narrow;
using kernels::cuda::RowOf;
using kernels::cuda::Widen;

constexpr int kThreads = 32;

// A block is a row of c.
void Reference(DenseMatmul p) {
  const int64_t row = BlockX();
  for (int64_t column = ThreadX(); column < p.c.cols; column += kThreads) {
    float sum = 0.0f;
    for (int64_t d = 0; d < p.a.cols; ++d) {
      const Bf16 b = p.transpose_b ? RowOf<Bf16>(p.b, column)[d] : RowOf<Bf16>(p.b, d)[column];
      sum = fmaf(Widen(RowOf<Bf16>(p.a, row)[d]), Widen(b), sum);
    }
    sum *= p.alpha;
    if (p.bias) sum += Widen(RowOf<Bf16>(p.bias, 0)[column]);
    Bf16* c = RowOf<Bf16>(p.c, row) + column;
    *c = Narrow<Bf16>(p.accumulate ? Widen(*c) + sum : sum);
  }
}

}  // namespace

absl::Status LoadDenseMatmul() { return absl::OkStatus(); }
std::string DenseMatmulVersion() { return "the tests' reference"; }

void RunDenseMatmul(Launcher& launcher, const char* name, const DenseMatmul& matmul) {
  Launch(launcher, name, &Reference, {.blocks_x = matmul.c.rows, .threads = kThreads}, matmul);
}

}  // namespace qlora::gpu
