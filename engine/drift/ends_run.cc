#include "engine/drift/ends_run.h"

#include <algorithm>
#include <utility>

#include "engine/model/load_weights.h"

namespace qlora::engine {
namespace {

using kernels::DType;

// Slots for the rows of these roles, as the form stores them.
Storage AddEnd(const StreamContext& context, const ModelForm& form,
               std::initializer_list<WeightRole> roles, const Storage* tables_of,
               Program* program) {
  ModelSpec spec = *context.spec;
  spec.stored_dtype = form.dense;
  StorageOptions options{
      .mode = proto::Mode::LORA, .compute = form.compute, .training = false, .rope_positions = 1};
  for (const WeightRow& row : WeightRows(spec)) {
    if (std::find(roles.begin(), roles.end(), row.role) != roles.end()) {
      options.rows.push_back(row);
    }
  }
  return AddStorage(spec, options, program, tables_of);
}

absl::Status LoadAll(const ModelForm& form, const Storage& storage, Execution* execution) {
  for (const WeightSlot& slot : storage.weights) {
    if (absl::Status s = LoadWeight(*form.model, slot, execution); !s.ok()) return s;
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<size_t> EndsOf(absl::Span<const ModelForm> forms) {
  std::vector<size_t> ends;
  for (size_t f = 0; f < forms.size(); ++f) {
    size_t first = 0;
    while (forms[first].model != forms[f].model || forms[first].compute != forms[f].compute ||
           forms[first].dense != forms[f].dense) {
      ++first;
    }
    ends.push_back(first);
  }
  return ends;
}

absl::StatusOr<std::unique_ptr<EmbeddingRun>> EmbeddingRun::Create(const StreamContext& context,
                                                                   const ModelForm& form) {
  auto run = std::make_unique<EmbeddingRun>();
  run->form_ = &form;
  auto phase = StreamPhase::Create(context, 0, [&](const KernelSelection& kernels) {
    RecordedRun recorded;
    recorded.storage = AddEnd(context, form, {WeightRole::kEmbedding}, nullptr, &recorded.program);
    run->batch_ = AddBatchInputs(
        &recorded.program, {context.capacity.tokens, context.capacity.documents, 0}, 1, "batch");
    run->stream_ =
        recorded.program.AddBuffer("residual stream", BufferClass::kStepOutputs, form.compute,
                                   context.capacity.tokens, context.spec->hidden);
    Recorder recorder(&recorded.program, context.device, &kernels, "embedding");
    ModelPass(recorded.storage, run->batch_, &recorder, false).Embed(run->stream_);
    recorder.Finish(false);
    return recorded;
  });
  if (!phase.ok()) return phase.status();
  run->phase_ = *std::move(phase);
  return run;
}

absl::Status EmbeddingRun::Open() {
  if (absl::Status s = phase_->Open(); !s.ok()) return s;
  return LoadAll(*form_, plan().run.storage, phase_->execution());
}

absl::Status EmbeddingRun::Run(const MicroBatchInputs& batch, void* stream, int64_t bytes) {
  Execution* execution = phase_->execution();
  MicroBatchInputs inputs = batch;
  inputs.rows = inputs.targets = {};
  const std::vector<uint8_t> encoded = EncodeBatch(batch_, inputs, {});
  absl::Status status =
      execution->Stage(batch_.live_tokens, encoded.data(), int64_t(encoded.size()));
  if (!status.ok()) return status;
  if (status = execution->Run(0); !status.ok()) return status;
  return execution->Read(stream_, stream, bytes);
}

absl::StatusOr<std::unique_ptr<HeadRun>> HeadRun::Create(const StreamContext& context,
                                                         absl::Span<const ModelForm> forms,
                                                         int64_t rows) {
  auto run = std::make_unique<HeadRun>();
  const std::vector<size_t> first = EndsOf(forms);
  run->end_of_.resize(forms.size());
  for (size_t f = 0; f < forms.size(); ++f) {
    if (first[f] == f) {
      run->end_of_[f] = run->ends_.size();
      run->ends_.push_back({.form = &forms[f]});
    } else {
      run->end_of_[f] = run->end_of_[first[f]];
    }
  }
  auto phase = StreamPhase::Create(context, 0, [&](const KernelSelection& kernels) {
    return run->Record(context, rows, kernels);
  });
  if (!phase.ok()) return phase.status();
  run->phase_ = *std::move(phase);
  return run;
}

RecordedRun HeadRun::Record(const StreamContext& context, int64_t rows,
                            const KernelSelection& kernels) {
  RecordedRun recorded;
  Program* program = &recorded.program;
  const ModelSpec& spec = *context.spec;
  batch_ = AddBatchInputs(program, {rows, 0, 0}, 1, "rows");
  logits_ = program->AddBuffer("logits", BufferClass::kStepOutputs, DType::kF32, rows, spec.vocab);
  const WeightRole head = spec.tied_embeddings ? WeightRole::kEmbedding : WeightRole::kHead;
  for (End& end : ends_) {
    end.storage = AddEnd(context, *end.form, {WeightRole::kFinalNorm, head},
                         &end == &ends_[0] ? nullptr : &ends_[0].storage, program);
    end.stream = program->AddBuffer("residual stream", BufferClass::kStepOutputs, end.form->compute,
                                    rows, spec.hidden);
    end.piece = int64_t(program->pieces().size());
    Recorder recorder(program, context.device, &kernels, "head");
    ModelPass pass(end.storage, batch_, &recorder, false);
    pass.Logits(pass.FinalNorm(end.stream, {}), logits_);
    recorder.Finish(false);
  }
  recorded.storage = ends_[0].storage;
  return recorded;
}

absl::Status HeadRun::Open() {
  if (absl::Status s = phase_->Open(); !s.ok()) return s;
  for (const End& end : ends_) {
    if (absl::Status s = LoadAll(*end.form, end.storage, phase_->execution()); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status HeadRun::Run(size_t form, const void* stream, int64_t rows, float* logits) {
  Execution* execution = phase_->execution();
  const End& end = ends_[end_of_[form]];
  const int64_t bytes = rows * end.stream.cols * kernels::SizeOf(end.stream.dtype);
  if (absl::Status s = execution->Write(end.stream, stream, bytes); !s.ok()) return s;
  const int32_t live = int32_t(rows);
  if (absl::Status s = execution->Stage(batch_.live_tokens, &live, sizeof(live)); !s.ok()) return s;
  if (absl::Status s = execution->Run(end.piece); !s.ok()) return s;
  return execution->Read(logits_, logits, rows * logits_.cols * 4);
}

}  // namespace qlora::engine
