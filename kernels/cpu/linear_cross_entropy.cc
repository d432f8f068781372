#include "kernels/ops/linear_cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <variant>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/simd.h"
#include "kernels/cross_entropy_chunks.h"

namespace qlora::kernels::cpu {
namespace {

ChunkPlan PlanOf(const LinearCrossEntropy& op, Isa isa) {
  return PlanChunks(op, [&](const Op& product) {
    return std::visit([&](const auto& o) { return WorkspaceBytes(o, isa); }, product);
  });
}

// True where z[target] is the largest and nothing before it is as large.
bool IsFirstLargest(const float* z, int64_t target, float max) {
  return z[target] == max && std::find(z, z + target, max) == z + target;
}

// Loss of one row, and the gradient of its logits in their place.
RowResult FinishRow(const LinearCrossEntropy& op, const SimdKernels& simd, float* z,
                    int64_t target) {
  const int64_t vocabulary = op.head.out_features;
  const LogitStats stats = simd.logit_stats(z, vocabulary, op.softcap);
  const RowResult result = {double(stats.max) + std::log(stats.sum) - double(z[target]),
                            IsFirstLargest(z, target, stats.max) ? 1 : 0, 0};
  if (op.dh || op.dhead) {
    simd.logit_gradient(z, vocabulary, op.softcap, stats, target, op.h.dtype == DType::kBf16);
  }
  return result;
}

// Losses and right answers of each segment, in the order of its rows.
void SumSegments(const LinearCrossEntropy& op, const RowResult* results, int64_t count) {
  for (int64_t s = 0; s < op.loss.rows; ++s) {
    const int32_t* const segment = op.segments ? op.segments.Row<int32_t>(s) : nullptr;
    const RowResult* const end = results + (segment ? segment[1] : count);
    double loss = 0;
    int32_t correct = 0;
    for (const RowResult* r = results + (segment ? segment[0] : 0); r < end; ++r) {
      loss += r->loss;
      correct += r->correct;
    }
    double& total = *op.loss.Row<double>(s);
    total = op.accumulate_loss ? total + loss : loss;
    if (!op.correct) continue;
    int32_t& total_correct = *op.correct.Row<int32_t>(s);
    total_correct = op.accumulate_loss ? total_correct + correct : correct;
  }
}

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
  const int64_t workspace_pitch = plan.forward.x.pitch * SizeOf(op.h.dtype);

  ZeroRows(op.dh, LiveRowCount(op.live_rows, op.dh.rows), context);
  if (count == 0 && !op.accumulate_dhead) ZeroRows(op.dhead, op.dhead.rows, context);

  uint8_t* const base = static_cast<uint8_t*>(op.workspace.data);
  RowResult* const results = reinterpret_cast<RowResult*>(base + plan.results_at);
  for (int64_t begin = 0; begin < count; begin += plan.rows) {
    const int64_t rows = std::min(plan.rows, count - begin);
    *reinterpret_cast<int32_t*>(base + plan.live_at) = int32_t(rows);

    ForRowTiles(context.pool, rows, op.h.cols, [&](int64_t first, int64_t end) {
      for (int64_t i = first; i < end && row_bytes > 0; ++i) {
        const int32_t t = *op.rows.Row<int32_t>(begin + i);
        std::memcpy(base + i * workspace_pitch,
                    op.h.Row<uint8_t>(0) + t * op.h.pitch * SizeOf(op.h.dtype), row_bytes);
      }
    });
    Run(plan.forward, context);
    context.pool.Run(rows, [&](int64_t i, uint8_t*) {
      RowResult& result = results[begin + i];
      result =
          FinishRow(op, simd, plan.forward.y.Row<float>(i), *op.targets.Row<int32_t>(begin + i));
      if (op.row_loss) *op.row_loss.Row<float>(begin + i) = float(result.loss);
    });
    if (op.dh) {
      Run(plan.backward_input, context);
      const uint8_t* dh = base + plan.dh_at;
      ForRowTiles(context.pool, rows, op.h.cols, [&](int64_t first, int64_t end) {
        for (int64_t i = first; i < end && row_bytes > 0; ++i) {
          const int32_t t = *op.rows.Row<int32_t>(begin + i);
          std::memcpy(op.dh.Row<uint8_t>(0) + t * op.dh.pitch * SizeOf(op.dh.dtype),
                      dh + i * workspace_pitch, row_bytes);
        }
      });
    }
    if (op.dhead) {
      plan.backward_weight.accumulate = op.accumulate_dhead || begin > 0;
      Run(plan.backward_weight, context);
    }
  }
  SumSegments(op, results, count);
}
int64_t WorkspaceBytes(const LinearCrossEntropy& op, Isa isa) { return PlanOf(op, isa).bytes; }

}  // namespace qlora::kernels::cpu
