#include <algorithm>
#include <cmath>

#include "kernels/cross_entropy_chunks.h"
#include "kernels/cuda/elements.h"
#include "kernels/cuda/ops.h"
#include "kernels/ops/linear_cross_entropy.h"
#include "kernels/ops/reduce.h"

namespace qlora::kernels::cuda {
namespace {

constexpr int kCopyThreads = 128, kSumThreads = 256;
constexpr int kVector = 4;  // fp32 logits in 16 bytes
// Elements a thread has under way in the first pass: 512 threads of 64 bytes keep HBM busy.
constexpr int kAhead = 4;
constexpr float kLowest = -3.402823466e+38f;

// ---- Rows of h and dh

// How many trained rows chunk [begin, begin + rows) holds.
QLORA_DEVICE int64_t ChunkCount(const int32_t* count, int64_t begin, int64_t rows) {
  const int64_t rest = *count - begin;
  return rest < 0 ? 0 : rest < rows ? rest : rows;
}

struct Chunk {
  const int32_t* rows;     // op.rows
  const int32_t* targets;  // op.targets
  const int32_t* count;    // op.count
  int64_t rows_pitch, targets_pitch;
  int64_t begin, size;  // first trained row, and how many at most
};

// One block a trained row i: workspace row i = h[rows[begin + i]], or dh[rows[...]] = workspace row
// i. Pitches and `units` count elements of Unit. Gathering also leaves the chunk's count for the
// products.
template <class Unit, bool kGather>
QLORA_KERNEL void CopyRowsKernel(Chunk chunk, const Unit* from, int64_t from_pitch, Unit* to,
                                 int64_t to_pitch, int64_t units, int32_t* live) {
  const int64_t count = ChunkCount(chunk.count, chunk.begin, chunk.size);
  const int64_t i = gpu::BlockX();
  if (kGather && i == 0 && gpu::ThreadX() == 0) *live = int32_t(count);
  if (i >= count) return;
  const int64_t row = chunk.rows[(chunk.begin + i) * chunk.rows_pitch];
  from += (kGather ? row : i) * from_pitch;
  to += (kGather ? i : row) * to_pitch;
  for (int64_t u = gpu::ThreadX(); u < units; u += gpu::ThreadCount()) to[u] = from[u];
}

// One block a row of dh: zeros unless the row is among the ascending `rows`.
template <class Unit>
QLORA_KERNEL void ZeroUntrainedKernel(const int32_t* rows, int64_t rows_pitch, const int32_t* count,
                                      LiveRows live_rows, int64_t capacity, Unit* dh, int64_t pitch,
                                      int64_t units) {
  const int64_t row = gpu::BlockX();
  if (row >= LiveRowCount(live_rows, capacity)) return;
  int64_t low = 0, high = *count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (rows[middle * rows_pitch] < row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  if (low < *count && rows[low * rows_pitch] == row) return;
  for (int64_t u = gpu::ThreadX(); u < units; u += gpu::ThreadCount()) dh[row * pitch + u] = Unit{};
}

// ---- The softmax of a row

struct SoftmaxSum {
  float max, sum;  // sum = Σ exp(z − max)
};

QLORA_DEVICE SoftmaxSum Join(SoftmaxSum a, SoftmaxSum b) {
  const float max = fmaxf(a.max, b.max);
  return {max, a.sum * gpu::FastExp(a.max - max) + b.sum * gpu::FastExp(b.max - max)};
}

template <bool kSoftcap>
QLORA_DEVICE float Capped(float z, float softcap, float inverse_cap) {
  return kSoftcap ? softcap * tanhf(z * inverse_cap) : z;
}

// (softmax − onehot) · (1 − (z/softcap)²)
template <bool kSoftcap>
QLORA_DEVICE float Gradient(float z, SoftmaxSum s, float inverse_sum, float onehot,
                            float inverse_cap) {
  const float p = gpu::FastExp(z - s.max) * inverse_sum - onehot;
  const float t = z * inverse_cap;
  return kSoftcap ? p * (1.0f - t * t) : p;
}

struct alignas(16) Vector {
  float x[kVector];
};

struct Row {
  float* z;
  int64_t n;  // vocabulary
  int64_t target;
  float softcap, inverse_cap;
};

// Maximum and sum of exponentials over the row in one pass, and whether an element before the
// target equals it. A thread keeps a running maximum and rescales its sum where it rises.
template <bool kSoftcap>
QLORA_DEVICE SoftmaxSum ReadRow(const Row& row, float at_target, bool& earlier_equal) {
  SoftmaxSum mine = {kLowest, 0.0f};
  const int stride = gpu::ThreadCount() * kVector;
  for (int64_t tile = 0; tile < row.n; tile += int64_t{kAhead} * stride) {
    Vector read[kAhead] = {};
    QLORA_UNROLL
    for (int j = 0; j < kAhead; ++j) {
      const int64_t i = tile + j * stride + gpu::ThreadX() * kVector;
      // The last vector may reach into the gap behind the row, never beyond it.
      if (i < row.n) read[j] = *reinterpret_cast<const Vector*>(row.z + i);
    }
    QLORA_UNROLL
    for (int j = 0; j < kAhead; ++j) {
      const int64_t i = tile + j * stride + gpu::ThreadX() * kVector;
      if (i >= row.n) break;
      const int inside = row.n - i < kVector ? int(row.n - i) : kVector;
      float x[kVector], max = mine.max;
      QLORA_UNROLL
      for (int e = 0; e < kVector; ++e) {
        x[e] = Capped<kSoftcap>(read[j].x[e], row.softcap, row.inverse_cap);
        if (e >= inside) x[e] = -INFINITY;
        max = fmaxf(max, x[e]);
        if (x[e] == at_target && i + e < row.target) earlier_equal = true;
      }
      if (max > mine.max) {
        mine.sum *= gpu::FastExp(mine.max - max);
        mine.max = max;
      }
      QLORA_UNROLL
      for (int e = 0; e < kVector; ++e) mine.sum += gpu::FastExp(x[e] - mine.max);
    }
  }
  return mine;
}

// Over the block; every thread receives the same value.
QLORA_DEVICE SoftmaxSum JoinBlock(SoftmaxSum mine, bool& any) {
  gpu::SharedMemory memory;
  const gpu::Shared<float> max = memory.Take<float>(32), sum = memory.Take<float>(32);
  const gpu::Shared<int32_t> bit = memory.Take<int32_t>(32);
  for (int mask = 16; mask > 0; mask >>= 1) {
    mine = Join(mine, {gpu::ShuffleXor(mine.max, mask), gpu::ShuffleXor(mine.sum, mask)});
  }
  const bool any_of_warp = gpu::Ballot(any) != 0;
  if (gpu::Lane() == 0) {
    max[gpu::Warp()] = mine.max;
    sum[gpu::Warp()] = mine.sum;
    bit[gpu::Warp()] = any_of_warp ? 1 : 0;
  }
  gpu::SyncThreads();
  SoftmaxSum total = {kLowest, 0.0f};
  any = false;
  for (int w = 0; w < gpu::ThreadCount() / 32; ++w) {
    total = Join(total, {max[w], sum[w]});
    const int32_t b = bit[w];
    any = any || b != 0;
  }
  return total;
}

// Logits become their gradient, in place. As bf16 the row shrinks to its first half: tile j, of
// four elements a thread, is written over what tiles j/2 and before held. All tiles up to j being
// read, writes are safe up to tile 2j + 1; so the barriers stand at j = 0, 2, 6, 14, ...
template <class T, bool kSoftcap>
QLORA_DEVICE void WriteGradient(const Row& row, SoftmaxSum s) {
  struct alignas(kVector * sizeof(T)) Written {
    T x[kVector];
  };
  T* to = reinterpret_cast<T*>(row.z);
  const float inverse_sum = 1.0f / s.sum;
  const int64_t stride = int64_t{gpu::ThreadCount()} * kVector;
  int64_t j = 0;
  for (int64_t tile = 0; tile < row.n; tile += stride, ++j) {
    const int64_t i = tile + gpu::ThreadX() * kVector;
    Vector read = {};
    if (i < row.n) read = *reinterpret_cast<const Vector*>(row.z + i);
    if (sizeof(T) < sizeof(float) && ((j + 2) & (j + 1)) == 0) gpu::SyncThreads();
    Written written;
    QLORA_UNROLL
    for (int e = 0; e < kVector; ++e) {
      const float z = Capped<kSoftcap>(read.x[e], row.softcap, row.inverse_cap);
      const float onehot = i + e == row.target ? 1.0f : 0.0f;
      written.x[e] = Narrow<T>(Gradient<kSoftcap>(z, s, inverse_sum, onehot, row.inverse_cap));
    }
    // Writes into the gap behind the row change nothing that anybody reads.
    if (i < row.n) *reinterpret_cast<Written*>(to + i) = written;
  }
}

// One block a row of the chunk: loss, correctness, and the gradient of the logits in their place.
template <class T, bool kSoftcap>
QLORA_LAUNCH_BOUNDS(512, 2)
QLORA_KERNEL void CrossEntropyKernel(Chunk chunk, float* logits, int64_t pitch, int64_t vocabulary,
                                     float softcap, bool backward, RowResult* results,
                                     float* row_loss, int64_t row_loss_pitch) {
  const int64_t i = gpu::BlockX();
  if (i >= ChunkCount(chunk.count, chunk.begin, chunk.size)) return;
  const int64_t trained = chunk.begin + i;
  const Row row = {logits + i * pitch, vocabulary, chunk.targets[trained * chunk.targets_pitch],
                   softcap, kSoftcap ? 1.0f / softcap : 0.0f};
  const float at_target = Capped<kSoftcap>(row.z[row.target], softcap, row.inverse_cap);

  bool earlier_equal = false;
  const SoftmaxSum mine = ReadRow<kSoftcap>(row, at_target, earlier_equal);
  // Its barrier also parts the reads of z[target] from the writes below.
  const SoftmaxSum total = JoinBlock(mine, earlier_equal);
  if (gpu::ThreadX() == 0) {
    const double loss = double(total.max) + double(logf(total.sum)) - double(at_target);
    results[trained] = {loss, at_target == total.max && !earlier_equal ? 1 : 0, 0};
    if (row_loss != nullptr) row_loss[trained * row_loss_pitch] = float(loss);
  }
  if (backward) WriteGradient<T, kSoftcap>(row, total);
}

// ---- The sum over rows: one block a segment, so that its order depends on the segment's count
// alone

QLORA_KERNEL void SumResultsKernel(const RowResult* results, const int32_t* count,
                                   const int32_t* segments, int64_t segments_pitch, bool accumulate,
                                   double* loss, int64_t loss_pitch, int32_t* correct,
                                   int64_t correct_pitch) {
  gpu::SharedMemory memory;
  const gpu::Shared<double> losses = memory.Take<double>(kSumThreads);
  const gpu::Shared<int32_t> corrects = memory.Take<int32_t>(kSumThreads);
  const int thread = gpu::ThreadX();
  const int64_t segment = gpu::BlockX();
  const int64_t begin = segments == nullptr ? 0 : segments[segment * segments_pitch];
  const int64_t end = segments == nullptr ? *count : segments[segment * segments_pitch + 1];
  double my_loss = 0.0;
  int32_t my_correct = 0;
  for (int64_t i = begin + thread; i < end; i += kSumThreads) {
    my_loss += results[i].loss;
    my_correct += results[i].correct;
  }
  losses[thread] = my_loss;
  corrects[thread] = my_correct;
  for (int half = kSumThreads / 2; half > 0; half /= 2) {
    gpu::SyncThreads();
    if (thread < half) {
      losses[thread] += losses[thread + half];
      corrects[thread] += corrects[thread + half];
    }
  }
  if (thread != 0) return;
  const double total = losses[0];
  const int32_t total_correct = corrects[0];
  double* const l = loss + segment * loss_pitch;
  *l = accumulate ? *l + total : total;
  if (correct == nullptr) return;
  int32_t* const c = correct + segment * correct_pitch;
  *c = accumulate ? *c + total_correct : total_correct;
}

// ---- The host side

// Calls f(Unit(), units of a row, elements in a unit) with the widest unit that rows of these views
// consist of.
template <class F>
void WithCopyUnit(const ConstTensor& a, const ConstTensor& b, F&& f) {
  const int64_t element = SizeOf(a.dtype), row_bytes = a.cols * element;
  if (row_bytes % 16 == 0 && IsAligned(a, 16) && IsAligned(b, 16)) {
    f(gpu::Words4(), row_bytes / 16, 16 / element);
  } else if (element == 4) {
    f(uint32_t(), a.cols, 1);
  } else {
    f(uint16_t(), a.cols, 1);
  }
}

template <bool kGather>
void CopyRows(const Chunk& chunk, const ConstTensor& from, const Tensor& to, int32_t* live,
              const Context& context) {
  WithCopyUnit(from, to, [&](auto unit, int64_t units, int64_t elements) {
    using Unit = decltype(unit);
    gpu::Launch(context.launcher, LinearCrossEntropy::kName, &CopyRowsKernel<Unit, kGather>,
                {.blocks_x = chunk.size, .threads = kCopyThreads}, chunk,
                static_cast<const Unit*>(from.data), from.pitch / elements,
                static_cast<Unit*>(to.data), to.pitch / elements, units, live);
  });
}

void ZeroUntrained(const LinearCrossEntropy& op, const Context& context) {
  WithCopyUnit(op.dh, op.dh, [&](auto unit, int64_t units, int64_t elements) {
    using Unit = decltype(unit);
    gpu::Launch(context.launcher, LinearCrossEntropy::kName, &ZeroUntrainedKernel<Unit>,
                {.blocks_x = op.dh.rows, .threads = kCopyThreads},
                static_cast<const int32_t*>(op.rows.data), op.rows.pitch,
                static_cast<const int32_t*>(op.count.data), op.live_rows, op.dh.rows,
                static_cast<Unit*>(op.dh.data), op.dh.pitch / elements, units);
  });
}

void RunRows(const LinearCrossEntropy& op, const ChunkPlan& plan, const Chunk& chunk,
             const Context& context) {
  const bool backward = op.dh || op.dhead;
  const int64_t vocabulary = op.head.out_features;
  RowResult* results =
      reinterpret_cast<RowResult*>(static_cast<uint8_t*>(op.workspace.data) + plan.results_at);
  const Tensor& logits = plan.forward.y;
  const auto launch = [&](auto kernel) {
    gpu::Launch(context.launcher, LinearCrossEntropy::kName, kernel,
                {.blocks_x = chunk.size,
                 .threads = vocabulary <= 2048 ? 128 : 512,
                 .shared_bytes = 3 * 32 * int64_t{sizeof(float)}},
                chunk, static_cast<float*>(logits.data), logits.pitch, vocabulary, op.softcap,
                backward, results, static_cast<float*>(op.row_loss.data), op.row_loss.pitch);
  };
  DispatchActivation(op.h.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    op.softcap > 0 ? launch(&CrossEntropyKernel<T, true>) : launch(&CrossEntropyKernel<T, false>);
  });
}

// Everything about the trained rows [begin, begin + plan.rows), of which the device knows how many
// there are.
void RunChunk(const LinearCrossEntropy& op, ChunkPlan& plan, int64_t begin,
              const Context& context) {
  const Chunk chunk = {static_cast<const int32_t*>(op.rows.data),
                       static_cast<const int32_t*>(op.targets.data),
                       static_cast<const int32_t*>(op.count.data),
                       op.rows.pitch,
                       op.targets.pitch,
                       begin,
                       std::min(plan.rows, op.rows.rows - begin)};
  uint8_t* base = static_cast<uint8_t*>(op.workspace.data);
  const Tensor h = {base, op.h.dtype, plan.rows, op.h.cols, plan.forward.x.pitch};
  CopyRows<true>(chunk, op.h, h, reinterpret_cast<int32_t*>(base + plan.live_at), context);
  Run(plan.forward, context);
  RunRows(op, plan, chunk, context);
  if (op.dh) {
    Run(plan.backward_input, context);
    CopyRows<false>(chunk, plan.backward_input.dx, op.dh, nullptr, context);
  }
  if (op.dhead) {
    plan.backward_weight.accumulate = op.accumulate_dhead || begin > 0;
    Run(plan.backward_weight, context);
  }
}

}  // namespace

void Run(const LinearCrossEntropy& op, const Context& context) {
  ChunkPlan plan = PlanOf(op, context.card);
  Bind(op, plan);
  if (op.dh) ZeroUntrained(op, context);
  if (op.dhead && op.rows.rows == 0 && !op.accumulate_dhead) Run(Zero{op.dhead}, context);
  for (int64_t begin = 0; begin < op.rows.rows; begin += plan.rows) {
    RunChunk(op, plan, begin, context);
  }
  const uint8_t* base = static_cast<const uint8_t*>(op.workspace.data);
  gpu::Launch(context.launcher, LinearCrossEntropy::kName, &SumResultsKernel,
              {.blocks_x = op.loss.rows,
               .threads = kSumThreads,
               .shared_bytes = kSumThreads * int64_t{sizeof(double) + sizeof(int32_t)}},
              reinterpret_cast<const RowResult*>(base + plan.results_at),
              static_cast<const int32_t*>(op.count.data),
              static_cast<const int32_t*>(op.segments.data), op.segments.pitch, op.accumulate_loss,
              static_cast<double*>(op.loss.data), op.loss.pitch,
              static_cast<int32_t*>(op.correct.data), op.correct.pitch);
}
}  // namespace qlora::kernels::cuda
