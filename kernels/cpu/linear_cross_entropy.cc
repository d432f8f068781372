#include "kernels/ops/linear_cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/simd.h"

namespace qlora::kernels::cpu {
namespace {

constexpr int64_t kAlignment = 64;

int64_t RoundUp(int64_t n) { return (n + kAlignment - 1) / kAlignment * kAlignment; }

// Whether an optional operand is there: by shape too, since workspaces are asked for before there
// are addresses.
bool IsGiven(const ConstTensor& t) { return t.data != nullptr || t.cols > 0; }

struct RowResult {
  double loss;
  int32_t correct;
};

// The workspace: a chunk's rows of h, their logits (later the logits' gradient, in place), their
// rows of dh, results, the count of rows as the products read it, and the products' own workspace.
// The three products are the ops of linear.h, so that a head may be anything a base may be.
struct ChunkPlan {
  int64_t rows = 0;  // trained rows per chunk
  bool bf16 = false;
  bool backward = false;
  int64_t logits_at = 0, dh_at = 0, results_at = 0, live_at = 0, inner_at = 0, bytes = 0;
  LinearForward forward;
  LinearBackwardInput backward_input;
  LinearBackwardWeight backward_weight;
};

ChunkPlan PlanOf(const LinearCrossEntropy& op, Isa isa) {
  ChunkPlan plan;
  const int64_t capacity = op.rows.rows;
  plan.rows = op.chunk_rows > 0 ? std::min(op.chunk_rows, capacity) : capacity;
  plan.bf16 = op.h.dtype == DType::kBf16;
  plan.backward = IsGiven(op.dh) || IsGiven(op.dhead);
  const int64_t hidden = op.head.in_features, vocabulary = op.head.out_features;
  const int64_t pitch = RoundUp(vocabulary * int64_t{sizeof(float)}) / int64_t{sizeof(float)};
  const int64_t hidden_bytes = plan.rows * hidden * SizeOf(op.h.dtype);

  plan.logits_at = RoundUp(hidden_bytes);
  plan.dh_at = plan.logits_at + RoundUp(plan.rows * pitch * int64_t{sizeof(float)});
  plan.results_at = plan.dh_at + (IsGiven(op.dh) ? RoundUp(hidden_bytes) : 0);
  plan.live_at = plan.results_at + RoundUp(plan.rows * int64_t{sizeof(RowResult)});
  plan.inner_at = plan.live_at + kAlignment;

  // Addresses are filled in by Bind; the sizes decide the products' workspaces.
  const ConstTensor live = {&plan, DType::kI32, 1, 1, 1};
  const ConstTensor h = {&plan, op.h.dtype, plan.rows, hidden, hidden};
  const ConstTensor logits = {&plan, DType::kF32, plan.rows, vocabulary, pitch};
  const ConstTensor dlogits = {&plan, op.h.dtype, plan.rows, vocabulary,
                               plan.bf16 ? 2 * pitch : pitch};
  const auto output = [](const ConstTensor& t) {
    return Tensor{const_cast<void*>(t.data), t.dtype, t.rows, t.cols, t.pitch};
  };
  plan.forward.x = h;
  plan.forward.base = op.head;
  plan.forward.live_rows = live;
  plan.forward.y = output(logits);
  int64_t inner = WorkspaceBytes(plan.forward, isa);
  if (IsGiven(op.dh)) {
    plan.backward_input.dy = dlogits;
    plan.backward_input.base = op.head;
    plan.backward_input.live_rows = live;
    plan.backward_input.dx = output(h);
    inner = std::max(inner, WorkspaceBytes(plan.backward_input, isa));
  }
  if (IsGiven(op.dhead)) {
    plan.backward_weight.x = h;
    plan.backward_weight.dy = dlogits;
    plan.backward_weight.live_rows = live;
    plan.backward_weight.dweight = op.dhead;
    inner = std::max(inner, WorkspaceBytes(plan.backward_weight, isa));
  }
  plan.bytes = plan.inner_at + inner;
  return plan;
}

void Bind(const LinearCrossEntropy& op, ChunkPlan& plan) {
  uint8_t* base = static_cast<uint8_t*>(op.workspace.data);
  const Tensor inner = {base + plan.inner_at, DType::kU8, 1, plan.bytes - plan.inner_at,
                        plan.bytes - plan.inner_at};
  plan.forward.x.data = plan.backward_weight.x.data = base;
  plan.forward.y.data = base + plan.logits_at;
  plan.backward_input.dy.data = plan.backward_weight.dy.data = base + plan.logits_at;
  plan.backward_input.dx.data = base + plan.dh_at;
  plan.forward.live_rows.data = plan.backward_input.live_rows.data =
      plan.backward_weight.live_rows.data = base + plan.live_at;
  plan.forward.workspace = plan.backward_input.workspace = plan.backward_weight.workspace = inner;
}

// True where z[target] is the largest and nothing before it is as large.
bool IsFirstLargest(const float* z, int64_t target, float max) {
  return z[target] == max && std::find(z, z + target, max) == z + target;
}

// Loss of one row, and the gradient of its logits in their place.
RowResult FinishRow(const LinearCrossEntropy& op, const ChunkPlan& plan, const SimdKernels& simd,
                    float* z, int64_t target) {
  const int64_t vocabulary = op.head.out_features;
  const LogitStats stats = simd.logit_stats(z, vocabulary, op.softcap);
  const RowResult result = {double(stats.max) + std::log(stats.sum) - double(z[target]),
                            IsFirstLargest(z, target, stats.max) ? 1 : 0};
  if (plan.backward) simd.logit_gradient(z, vocabulary, op.softcap, stats, target, plan.bf16);
  return result;
}

// Losses and right answers of each segment, in the order of its rows.
class SegmentSums {
 public:
  explicit SegmentSums(const LinearCrossEntropy& op)
      : op_(op), loss_(op.loss.rows), correct_(op.loss.rows) {}

  // Rows come in ascending order.
  void Add(int64_t row, const RowResult& result) {
    while (op_.segments && row >= op_.segments.Row<int32_t>(at_)[1]) ++at_;
    loss_[at_] += result.loss;
    correct_[at_] += result.correct;
  }
  void Store() const {
    for (int64_t s = 0; s < op_.loss.rows; ++s) {
      double& loss = *op_.loss.Row<double>(s);
      loss = op_.accumulate_loss ? loss + loss_[s] : loss_[s];
      if (!op_.correct) continue;
      int32_t& correct = *op_.correct.Row<int32_t>(s);
      correct = op_.accumulate_loss ? correct + correct_[s] : correct_[s];
    }
  }

 private:
  const LinearCrossEntropy& op_;
  int64_t at_ = 0;
  std::vector<double> loss_;
  std::vector<int32_t> correct_;
};

void ZeroRows(const Tensor& t, int64_t rows, const Context& context) {
  if (t && rows > 0) Run(Zero{SliceRows(t, 0, rows)}, context);
}

}  // namespace

void Run(const LinearCrossEntropy& op, const Context& context) {
  const SimdKernels& simd = SimdFor(context.isa);
  const int64_t count = std::clamp<int64_t>(op.count.Scalar<int32_t>(), 0, op.rows.rows);
  const int64_t row_bytes = op.h.cols * SizeOf(op.h.dtype);
  ChunkPlan plan = PlanOf(op, context.isa);
  Bind(op, plan);

  ZeroRows(op.dh, LiveRowCount(op.live_rows, op.dh.rows), context);
  if (count == 0 && !op.accumulate_dhead) ZeroRows(op.dhead, op.dhead.rows, context);

  SegmentSums sums(op);
  for (int64_t begin = 0; begin < count; begin += plan.rows) {
    const int64_t rows = std::min(plan.rows, count - begin);
    uint8_t* base = static_cast<uint8_t*>(op.workspace.data);
    RowResult* results = reinterpret_cast<RowResult*>(base + plan.results_at);
    *reinterpret_cast<int32_t*>(base + plan.live_at) = int32_t(rows);

    ForRowTiles(context.pool, rows, op.h.cols, [&](int64_t first, int64_t end) {
      for (int64_t i = first; i < end && row_bytes > 0; ++i) {
        const int32_t t = *op.rows.Row<int32_t>(begin + i);
        std::memcpy(base + i * row_bytes,
                    op.h.Row<uint8_t>(0) + t * op.h.pitch * SizeOf(op.h.dtype), row_bytes);
      }
    });
    Run(plan.forward, context);
    context.pool.Run(rows, [&](int64_t i, uint8_t*) {
      results[i] = FinishRow(op, plan, simd, plan.forward.y.Row<float>(i),
                             *op.targets.Row<int32_t>(begin + i));
    });
    for (int64_t i = 0; i < rows; ++i) {
      sums.Add(begin + i, results[i]);
      if (op.row_loss) *op.row_loss.Row<float>(begin + i) = float(results[i].loss);
    }
    if (op.dh) {
      Run(plan.backward_input, context);
      const uint8_t* dh = base + plan.dh_at;
      ForRowTiles(context.pool, rows, op.h.cols, [&](int64_t first, int64_t end) {
        for (int64_t i = first; i < end && row_bytes > 0; ++i) {
          const int32_t t = *op.rows.Row<int32_t>(begin + i);
          std::memcpy(op.dh.Row<uint8_t>(0) + t * op.dh.pitch * SizeOf(op.dh.dtype),
                      dh + i * row_bytes, row_bytes);
        }
      });
    }
    if (op.dhead) {
      plan.backward_weight.accumulate = op.accumulate_dhead || begin > 0;
      Run(plan.backward_weight, context);
    }
  }
  sums.Store();
}
int64_t WorkspaceBytes(const LinearCrossEntropy& op, Isa isa) { return PlanOf(op, isa).bytes; }

}  // namespace qlora::kernels::cpu
