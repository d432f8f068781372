// cuDNN's door for the host: plain attention over the tables that it is given, in fp32.

#include "kernels/cuda/cudnn_attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "gpu/launch.h"
#include "gpu/primitives.h"
#include "kernels/cuda/elements.h"

namespace qlora::gpu {
namespace {

using kernels::cuda::Bf16;
using kernels::cuda::Narrow;
using kernels::cuda::Widen;

// Enough that what lies behind the tables is seen to be there.
constexpr int64_t kWorkspaceBytes = 1000;
constexpr int kThreads = 32;

struct Arguments {
  SdpaProblem problem;
  SdpaAddresses addresses;
};

// One document: rows of a head of each operand.
class Document {
 public:
  Document(const Arguments& a, int64_t index) : a_(a), index_(index) {}

  int64_t length() const { return a_.addresses.lengths[index_]; }
  int64_t FirstKey(int64_t i) const {
    return a_.problem.window > 0 ? std::max<int64_t>(i - a_.problem.window + 1, 0) : 0;
  }
  Bf16* Row(SdpaOperand o, int64_t row, int64_t head) const {
    return static_cast<Bf16*>(a_.addresses.data[o]) + a_.addresses.begins[o][index_] +
           row * a_.problem.pitch[o] + head * a_.problem.head_size;
  }
  float& Lse(int64_t row, int64_t head) const {
    return static_cast<float*>(a_.addresses.data[kLse])[a_.addresses.begins[kLse][index_] +
                                                        row * a_.problem.pitch[kLse] + head];
  }
  float Dot(const Bf16* x, const Bf16* y) const {
    float sum = 0.0f;
    for (int64_t c = 0; c < a_.problem.head_size; ++c) sum = fmaf(Widen(x[c]), Widen(y[c]), sum);
    return sum;
  }

 private:
  const Arguments& a_;
  const int64_t index_;
};

float Rounded(float x) { return Widen(Narrow<Bf16>(x)); }

// A block is a document and a query head.
void Forward(Arguments a) {
  if (ThreadX() != 0) return;
  static_cast<uint8_t*>(a.addresses.workspace)[kWorkspaceBytes - 1] = 1;
  const SdpaProblem& p = a.problem;
  const Document document(a, BlockX());
  const int64_t head = BlockY(), kv_head = head / (p.query_heads / p.kv_heads);
  for (int64_t i = 0; i < document.length(); ++i) {
    std::vector<float> z;
    float most = -INFINITY, sum = 0.0f;
    for (int64_t j = document.FirstKey(i); j <= i; ++j) {
      z.push_back(p.scale * document.Dot(document.Row(kQ, i, head), document.Row(kK, j, kv_head)));
      most = std::max(most, z.back());
    }
    for (const float value : z) sum += std::exp(value - most);
    const float lse = most + std::log(sum);
    document.Lse(i, head) = lse;
    for (int64_t c = 0; c < p.head_size; ++c) {
      float o = 0.0f;
      for (size_t n = 0; n < z.size(); ++n) {
        const int64_t j = document.FirstKey(i) + int64_t(n);
        o = fmaf(std::exp(z[n] - lse), Widen(document.Row(kV, j, kv_head)[c]), o);
      }
      document.Row(kO, i, head)[c] = Narrow<Bf16>(o);
    }
  }
}

// A block is a document and a key head, with all its query heads.
void Backward(Arguments a) {
  if (ThreadX() != 0) return;
  const SdpaProblem& p = a.problem;
  const Document document(a, BlockX());
  const int64_t kv_head = BlockY(), group = p.query_heads / p.kv_heads, d = p.head_size;
  std::vector<float> dk(document.length() * d), dv(dk.size());
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    for (int64_t i = 0; i < document.length(); ++i) {
      const Bf16* const q = document.Row(kQ, i, head);
      const Bf16* const dout = document.Row(kDout, i, head);
      const float delta = document.Dot(dout, document.Row(kO, i, head));
      std::vector<float> dq(d);
      for (int64_t j = document.FirstKey(i); j <= i; ++j) {
        const Bf16* const k = document.Row(kK, j, kv_head);
        const float probability = std::exp(p.scale * document.Dot(q, k) - document.Lse(i, head));
        const float dz =
            Rounded(probability * (document.Dot(dout, document.Row(kV, j, kv_head)) - delta));
        for (int64_t c = 0; c < d; ++c) {
          dq[c] = fmaf(dz, Widen(k[c]), dq[c]);
          dk[j * d + c] = fmaf(dz, Widen(q[c]), dk[j * d + c]);
          dv[j * d + c] = fmaf(Rounded(probability), Widen(dout[c]), dv[j * d + c]);
        }
      }
      for (int64_t c = 0; c < d; ++c) {
        document.Row(kDq, i, head)[c] = Narrow<Bf16>(p.scale * dq[c]);
      }
    }
  }
  for (int64_t j = 0; j < document.length(); ++j) {
    for (int64_t c = 0; c < d; ++c) {
      document.Row(kDk, j, kv_head)[c] = Narrow<Bf16>(p.scale * dk[j * d + c]);
      document.Row(kDv, j, kv_head)[c] = Narrow<Bf16>(dv[j * d + c]);
    }
  }
}

}  // namespace

absl::StatusOr<int64_t> PrepareSdpa(const SdpaProblem&, const Properties&) {
  return kWorkspaceBytes;
}

void RunSdpa(Launcher& launcher, const SdpaProblem& problem, const SdpaAddresses& addresses) {
  Launch(launcher, "sdpa", problem.backward ? &Backward : &Forward,
         {.blocks_x = problem.documents,
          .blocks_y = problem.backward ? problem.kv_heads : problem.query_heads,
          .threads = kThreads},
         Arguments{problem, addresses});
}

}  // namespace qlora::gpu
