#include "engine/record/record.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/comm/comm.h"

namespace qlora::engine {
namespace {

using kernels::DType;
using kernels::Tensor;

// Products of few rows run by kernels of their own, which round otherwise
// (kernels/cpu/linear_gemv.h, kernels/cuda/linear_skinny.h). Training and evaluation take the
// others, however few rows they have: the bytes of a row shall not tell how many stood beside it.
constexpr int64_t kFewestRows = 32;

BatchCapacity WithFewestRows(BatchCapacity capacity) {
  capacity.tokens = std::max(capacity.tokens, kFewestRows);
  capacity.trained_rows = std::max(capacity.trained_rows, kFewestRows);
  return capacity;
}

class RunRecorder {
 public:
  RunRecorder(RecordedRun* run, const RecordOptions& options, const kernels::Device& device)
      : run_(*run), options_(options), device_(device) {}

  void RecordTraining() {
    TrainPieces& t = run_.train.emplace();
    t.passes = options_.passes;
    t.inputs =
        AddBatchInputs(&run_.program, WithFewestRows(options_.train), courses(), "micro-batch");
    t.update_inputs = AddUpdateInputs(&run_.program, courses());
    t.loss.loss = Output("loss", DType::kF64);
    t.sum_of_squares = Output("sum of squares", DType::kF64);
    t.nonfinite = Output("non-finite gradients", DType::kI32);
    t.gradient_norm = Output("gradient norm", DType::kF32);
    t.gradient_scale = Output("gradient scale", DType::kF32);
    t.skip = Output("skip", DType::kI32);

    t.begin_sum = Piece("begin sum", [&](Recorder& r) {
      r.Emit(kernels::Zero{run_.storage.gradient});
      r.Emit(kernels::Zero{t.loss.loss});
    });
    RecordMicroBatch(&t);
    DivideGradient(&t);
    for (const Tensor& pending : run_.storage.pending_gradients) {
      const Tensor pending_loss = Output("loss awaiting its pair", DType::kF64);
      RecordTake(pending, pending_loss, &t);
      t.keep.push_back(Piece("keep gradients", [&](Recorder& r) {
        r.Emit(kernels::Zero{pending});
        r.Emit(kernels::AddGradient{.from = run_.storage.gradient, .into = pending});
        r.Emit(kernels::Zero{pending_loss});
        r.Emit(kernels::AddGradient{.from = t.loss.loss, .into = pending_loss});
      }));
    }
    if (options_.storage.ranks > 1) RecordArrivals(&t);
    RecordUpdate(&t);
  }

  void RecordEvaluation() {
    EvalPieces& e = run_.eval.emplace();
    e.inputs = AddBatchInputs(&run_.program, WithFewestRows(*options_.eval), courses(),
                              "evaluation batch");
    e.loss.loss = Output("evaluation loss", DType::kF64);
    e.loss.correct = Output("correct tokens", DType::kI32);
    e.loss.row_loss = run_.program.AddBuffer("loss of each token", BufferClass::kStepOutputs,
                                             DType::kF32, e.inputs.capacity.trained_rows, 1);
    if (options_.eval_logits) {
      e.logits = run_.program.AddBuffer("logits", BufferClass::kStepOutputs, DType::kF32,
                                        e.inputs.capacity.tokens, run_.storage.spec.vocab);
    }
    e.forward = Piece("evaluation batch", [&](Recorder& r) {
      ModelPass pass(run_.storage, e.inputs, &r, false);
      const Tensor h = pass.Forward(nullptr);
      pass.Loss(h, {.loss = e.loss.loss, .row_loss = e.loss.row_loss, .correct = e.loss.correct},
                {});
      if (e.logits) pass.Logits(h, e.logits);
    });
  }

  void RecordGeneration() {
    const GenerationShape& shape = *options_.generate;
    GenerationPieces& g = run_.generate.emplace();
    KvCache cache;
    const int64_t width = run_.storage.spec.kv_heads * run_.storage.spec.head_size;
    for (int64_t layer = 0; layer < run_.storage.spec.layers; ++layer) {
      for (auto* side : {&cache.k, &cache.v}) {
        side->push_back(run_.program.AddBuffer(absl::StrCat("layer ", layer, " cache"),
                                               BufferClass::kKvCache, options_.storage.compute,
                                               shape.sequences * shape.context, width, int(layer)));
      }
    }
    g.context = shape.context;
    g.logits = run_.program.AddBuffer("next-token logits", BufferClass::kStepOutputs, DType::kF32,
                                      shape.sequences, run_.storage.spec.vocab);
    g.prefill_inputs =
        AddBatchInputs(&run_.program, {.tokens = shape.prefill, .documents = 1, .trained_rows = 0},
                       courses(), "prompt");
    g.decode_inputs = AddBatchInputs(
        &run_.program, {.tokens = shape.sequences, .documents = shape.sequences, .trained_rows = 0},
        courses(), "next tokens");
    g.prefill = Piece("prompt", [&](Recorder& r) {
      ModelPass(run_.storage, g.prefill_inputs, &r, false).Forward(&cache);
    });
    g.decode = Piece("next token", [&](Recorder& r) {
      ModelPass pass(run_.storage, g.decode_inputs, &r, false);
      pass.Logits(pass.Forward(&cache), g.logits);
    });
  }

 private:
  int64_t courses() const { return int64_t(run_.storage.courses.size()); }

  // A number of each course.
  Tensor Output(const char* name, DType dtype) {
    return run_.program.AddBuffer(name, BufferClass::kStepOutputs, dtype, courses(), 1);
  }

  template <class F>
  int64_t Piece(const char* name, F&& record) {
    Recorder recorder(&run_.program, &device_, &options_.kernels, name);
    record(recorder);
    recorder.Finish(false);
    return int64_t(run_.program.pieces().size()) - 1;
  }

  void RecordMicroBatch(TrainPieces* t) {
    Recorder recorder(&run_.program, &device_, &options_.kernels, "micro-batch");
    ModelPass pass(run_.storage, t->inputs, &recorder, true);
    const Tensor h = pass.Forward(nullptr);
    recorder.BeginBackward();
    const Tensor dh = recorder.Transient("d normed", options_.storage.compute, h.rows, h.cols, -1);
    pass.Loss(h, {.loss = t->loss.loss, .accumulate = true}, dh);
    pass.Backward(dh);
    t->recompute = pass.RecomputeCandidates();
    t->layer_inputs = pass.LayerInputs();
    recorder.Finish(true);
    t->micro_batch = int64_t(run_.program.pieces().size()) - 1;
  }

  // One rank has nothing to sum while backward runs.
  void DivideGradient(TrainPieces* t) {
    const ParameterSpace& space = run_.storage.space;
    const int64_t least = run_.storage.options.ranks > 1
                              ? options_.least_part_bytes / kernels::SizeOf(DType::kF32)
                              : space.size();
    t->gradient_parts = engine::DivideGradient(space, run_.storage.gradient, least,
                                               &run_.program.pieces()[t->micro_batch]);
  }

  // The loss goes with the last part: by then it is certainly there.
  void RecordTake(Tensor pending, Tensor pending_loss, TrainPieces* t) {
    std::vector<int64_t>& take = t->take.emplace_back();
    for (const GradientPart& part : t->gradient_parts) {
      take.push_back(Piece("take gradients", [&](Recorder& r) {
        r.Emit(kernels::AddGradient{.from = PartOf(pending, part),
                                    .into = PartOf(run_.storage.gradient, part)});
        if (take.size() + 1 < t->gradient_parts.size()) return;
        r.Emit(kernels::AddGradient{.from = pending_loss, .into = t->loss.loss});
      }));
    }
  }

  // Parts are summed one after another and share what arrives.
  void RecordArrivals(TrainPieces* t) {
    const Storage& s = run_.storage;
    const int ranks = s.options.ranks, rank = s.options.rank;
    int64_t room = 0;
    for (const GradientPart& part : t->gradient_parts) {
      const Shares shares = SharesIn(part, s.state_shares);
      room = std::max(room, s.options.shard_states ? (ranks - 1) * (shares[rank + 1] - shares[rank])
                                                   : Comm::ScratchCount(part.count, ranks));
    }
    t->gradients_arriving = run_.program.AddBuffer("gradients arriving from other ranks",
                                                   BufferClass::kGradients, DType::kF32, 1, room);
    t->losses_arriving =
        run_.program.AddBuffer("losses arriving from other ranks", BufferClass::kStepOutputs,
                               DType::kF64, 1, Comm::ScratchCount(courses(), ranks));
  }

  // Chunks of the norm's sum, by whose they are: bytes of the table that all ranks come to hold.
  void RecordChunkSums(TrainPieces* t) {
    const Storage& s = run_.storage;
    const int64_t begin = s.state_shares[s.options.rank],
                  count = s.state_shares[s.options.rank + 1] - begin;
    const Shares bytes = ChunkSumShares(s);
    t->chunk_sums = run_.program.AddBuffer("the norm's chunk sums", BufferClass::kStepOutputs,
                                           DType::kU8, 1, bytes.back());
    t->sum_chunks = Piece("norm of the own share", [&](Recorder& r) {
      if (count == 0) return;
      const int64_t first = bytes[s.options.rank];
      r.Emit(kernels::NormAndFinite{
          .x = kernels::Slice(s.gradient, 0, 1, begin, count),
          .workspace =
              kernels::Slice(t->chunk_sums, 0, 1, first, bytes[s.options.rank + 1] - first)});
    });
  }

  void RecordUpdate(TrainPieces* t) {
    const Storage& s = run_.storage;
    const AdamOptions& adam = options_.adam;
    if (s.options.shard_states) RecordChunkSums(t);
    const auto own = [](const Tensor& outputs, int64_t course) {
      return kernels::SliceRows(outputs, course, 1);
    };
    for (int64_t c = 0; c < courses(); ++c) {
      t->finish.push_back(Piece("norm", [&](Recorder& r) {
        r.Emit(kernels::NormAndFinite{.x = t->chunk_sums ? Tensor{} : s.CourseView(c, s.gradient),
                                      .sum_of_squares = own(t->sum_of_squares, c),
                                      .nonfinite = own(t->nonfinite, c),
                                      .workspace = t->chunk_sums});
        r.Emit(kernels::GradientScale{.sum_of_squares = own(t->sum_of_squares, c),
                                      .nonfinite = own(t->nonfinite, c),
                                      .loss = own(t->loss.loss, c),
                                      .inverse_tokens = own(t->update_inputs.inverse_tokens, c),
                                      .max_norm = adam.max_grad_norm,
                                      .gradient_norm = own(t->gradient_norm, c),
                                      .gradient_scale = own(t->gradient_scale, c),
                                      .skip = own(t->skip, c)});
      }));
    }
    for (int64_t w = 0; w < int64_t(s.windows.size()); ++w) {
      const StateWindow& window = s.windows[w];
      const auto part = [&](const Tensor& flat) {
        if (!flat) return flat;
        return kernels::Slice(flat, 0, 1, window.first_block * kernels::kParameterBlock,
                              window.blocks * kernels::kParameterBlock);
      };
      const int64_t piece = Piece("update", [&](Recorder& r) {
        r.Emit(kernels::AdamW{.gradient = part(s.gradient),
                              .segments = s.segments,
                              .scalars = t->update_inputs.scalars,
                              .gradient_scale = t->gradient_scale,
                              .skip = own(t->skip, window.course),
                              .beta1 = adam.beta1,
                              .beta2 = adam.beta2,
                              .epsilon = adam.epsilon,
                              .first_block = window.first_block,
                              .parameter = window.master,
                              .m = window.m,
                              .v = window.v,
                              .m_absmax = window.m_absmax,
                              .v_absmax = window.v_absmax,
                              .compute = part(s.compute)});
      });
      t->update.push_back({.windows = {w, 1}, .piece = piece});
    }
  }

  RecordedRun& run_;
  const RecordOptions& options_;
  const kernels::Device& device_;
};

}  // namespace

RecordedRun Record(const ModelSpec& spec, const RecordOptions& options,
                   const kernels::Device& device) {
  RecordedRun run;
  run.storage = AddStorage(spec, options.storage, &run.program);
  RunRecorder recorder(&run, options, device);
  if (options.storage.training) recorder.RecordTraining();
  if (options.eval.has_value()) recorder.RecordEvaluation();
  if (options.generate.has_value()) recorder.RecordGeneration();
  return run;
}

Shares ChunkSumShares(const Storage& storage) {
  Shares bytes = storage.state_shares;
  for (int64_t& begin : bytes) {
    begin = (begin + kernels::kReduceChunk - 1) / kernels::kReduceChunk * kernels::kChunkSumBytes;
  }
  return bytes;
}

int64_t PendingGradients(int64_t micro_batches) {
  int64_t levels = 0;
  while ((int64_t{1} << levels) < micro_batches) ++levels;
  return levels;
}

}  // namespace qlora::engine
