// Writes a run down as a program: its storage, and the pieces that training, evaluation and
// generation are made of.

#ifndef QLORA_ENGINE_RECORD_RECORD_H_
#define QLORA_ENGINE_RECORD_RECORD_H_

#include <optional>
#include <vector>

#include "engine/optim/state_pager.h"
#include "engine/record/model_pass.h"
#include "engine/record/program.h"
#include "engine/record/storage.h"
#include "engine/step/gradient_parts.h"
#include "engine/step/step_inputs.h"

namespace qlora::engine {

struct AdamOptions {
  double beta1 = 0.9, beta2 = 0.999;
  float epsilon = 1e-8f;
  float max_grad_norm = 0.0f;
};

// Keys and values of `sequences` sequences of up to `context` tokens; prompts are fed in parts of
// `prefill` tokens.
struct GenerationShape {
  int64_t sequences = 0;
  int64_t context = 0;
  int64_t prefill = 0;
};

struct RecordOptions {
  StorageOptions storage;
  AdamOptions adam;     // used where storage.training
  BatchCapacity train;  // likewise; of a pass
  // That a micro-batch makes: more than one where the courses go through the model in groups.
  int64_t passes = 1;
  int64_t micro_batches = 1;          // of a step: only its predicted time asks
  std::optional<BatchCapacity> eval;  // loss on held-out data
  bool eval_logits = false;           // and the logits of every token
  std::optional<GenerationShape> generate;
  KernelSelection kernels;
  // Least bytes of a part of the gradient that is summed over ranks by itself: below, what starting
  // a collective costs shows.
  int64_t least_part_bytes = 256 << 10;
};

// Sums of each of S courses over a training step's micro-batches, or over one evaluation batch.
// Persistent.
struct LossViews {
  kernels::Tensor loss;      // f64 [S, 1]
  kernels::Tensor row_loss;  // f32 [trained rows, 1]; evaluation only
  kernels::Tensor correct;   // i32 [S, 1]; evaluation only
};

// The update of windows of one course.
struct UpdatePiece {
  WindowRange windows;  // in Storage::windows
  int64_t piece = -1;
};

struct TrainPieces {
  BatchViews inputs;
  int64_t passes = 1;  // of a micro-batch, as recorded with: how often `micro_batch` runs in it
  UpdateViews update_inputs;
  LossViews loss;
  std::vector<GradientPart> gradient_parts;             // as micro_batch finishes them
  kernels::Tensor gradients_arriving, losses_arriving;  // scratch of the sums over ranks, or empty
  kernels::Tensor chunk_sums;  // of the norm, gathered from all ranks; with shard_states
  kernels::Tensor sum_of_squares, nonfinite, gradient_norm, gradient_scale, skip;  // [S, 1]
  int64_t begin_sum = -1;                                     // zeroes the gradients and the loss
  int64_t micro_batch = -1;                                   // forward, loss, backward
  std::vector<std::vector<int64_t>> take;                     // [i][part]: gradients += pending[i]
  std::vector<int64_t> keep;                                  // pending[i] = gradients, loss
  int64_t sum_chunks = -1;                                    // of this rank's share: chunk_sums
  std::vector<int64_t> finish;                                // norm, clip factor of each course
  std::vector<UpdatePiece> update;                            // of all windows, in order
  std::vector<std::vector<std::vector<BufferId>>> recompute;  // of micro_batch
  std::vector<BufferId> layer_inputs;                         // likewise
};

struct EvalPieces {
  BatchViews inputs;
  LossViews loss;
  kernels::Tensor logits;  // f32 [tokens, vocab] or empty
  int64_t forward = -1;
};

struct GenerationPieces {
  BatchViews prefill_inputs, decode_inputs;
  kernels::Tensor logits;  // f32 [sequences, vocab]
  int64_t context = 0;     // tokens of one sequence that the cache holds
  int64_t prefill = -1;    // extends the cache
  int64_t decode = -1;     // one token of every sequence: extends the cache, gives logits
};

struct RecordedRun {
  Program program;
  Storage storage;
  std::optional<TrainPieces> train;
  std::optional<EvalPieces> eval;
  std::optional<GenerationPieces> generate;
};

RecordedRun Record(const ModelSpec& spec, const RecordOptions& options,
                   const kernels::Device& device);

// With shard_states: whose chunk sums are whose, in bytes of TrainPieces::chunk_sums.
Shares ChunkSumShares(const Storage& storage);

// Buffers that a balanced tree over `micro_batches` needs beside the one they write: one per level.
int64_t PendingGradients(int64_t micro_batches);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_RECORD_RECORD_H_
