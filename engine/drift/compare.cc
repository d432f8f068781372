#include "engine/drift/compare.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/data/parallel.h"
#include "engine/drift/ends_run.h"
#include "engine/drift/layer_run.h"
#include "engine/drift/logit_score.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

using kernels::DType;

// Logits of one model that stand on the host at a time, at least one row of them.
constexpr int64_t kLogitBytes = int64_t{32} << 20;

class Comparer {
 public:
  Comparer(const StreamContext& context, absl::Span<const ModelForm> forms, const Dataset& data,
           const Batcher& batcher, const CompareOptions& options)
      : context_(context),
        spec_(*context.spec),
        forms_(forms),
        data_(data),
        batcher_(batcher),
        options_(options),
        batches_(batcher.StepsOf(1.0)) {
    for (const ModelForm& form : forms_) {
      stream_bytes_.push_back(spec_.hidden * kernels::SizeOf(form.compute));
    }
    result_.models.resize(forms_.size());
    for (ModelScore& model : result_.models) {
      model.samples.resize(data.samples.size());
      model.layers.resize(spec_.layers);
    }
    if (options_.probe) result_.alone.resize(spec_.layers);
    head_rows_ = std::clamp<int64_t>(kLogitBytes / (4 * spec_.vocab), 1,
                                     std::max<int64_t>(context.capacity.trained_rows, 1));
  }

  absl::StatusOr<Comparison> Run() {
    if (absl::Status s = Plan(); !s.ok()) return s;
    for (int64_t first = 0; first < batches_; first += batches_per_part_) {
      ++result_.parts;
      if (absl::Status s = RunPart(first, std::min(first + batches_per_part_, batches_)); !s.ok()) {
        return s;
      }
    }
    return std::move(result_);
  }

 private:
  // All phases, with memory for none of them yet, and how many batches' streams fit beside the
  // largest.
  absl::Status Plan() {
    StreamContext beside = context_;
    const auto add = [&](const char* name, int64_t bytes) {
      if (context_.device->info().is_host) beside.limits.other.push_back({name, bytes});
    };
    // Of the baseline and of the model that is compared with it; and the rows they come from.
    add("logits and rows on the host", 2 * head_rows_ * (4 * spec_.vocab + 4 * spec_.hidden));
    add("streams and inputs of one batch, being compared",
        context_.capacity.tokens * (3 * 4 * spec_.hidden + 64));
    std::set<const AdapterWeights*> adapters;
    for (const ModelForm& form : forms_) {
      if (form.adapter == nullptr || !adapters.insert(form.adapter).second) continue;
      add("an adapter", form.adapter->Bytes());
    }
    const std::vector<size_t> ends = EndsOf(forms_);
    for (size_t f = 0; f < forms_.size(); ++f) {
      if (ends[f] != f) continue;
      auto embedding = EmbeddingRun::Create(beside, forms_[f]);
      if (!embedding.ok()) return embedding.status();
      result_.plan_bytes = std::max(result_.plan_bytes, (*embedding)->plan().total_bytes);
    }
    auto layers = LayerRun::Create(beside, forms_, /*with_pieces=*/true);
    if (!layers.ok()) return Annotated(layers.status());
    layers_ = *std::move(layers);
    auto head = HeadRun::Create(beside, forms_, head_rows_);
    if (!head.ok()) return head.status();
    head_ = *std::move(head);
    result_.plan_bytes =
        std::max({result_.plan_bytes, layers_->plan().total_bytes, head_->plan().total_bytes});
    return ChooseParts();
  }

  absl::Status ChooseParts() {
    int64_t token_bytes = 0;
    for (const int64_t bytes : stream_bytes_) token_bytes += bytes;
    const int64_t batch_bytes = std::max<int64_t>(context_.capacity.tokens * token_bytes, 1);
    const bool is_host = context_.device->info().is_host;
    const int64_t room = is_host
                             ? context_.limits.memory_bytes - result_.plan_bytes
                             : context_.limits.host_bytes.value_or(context_.limits.memory_bytes);
    batches_per_part_ = std::min(room / batch_bytes, batches_);
    if (batches_per_part_ < 1) {
      return proto::DoesNotFitError(absl::StrCat(
          "the residual streams of one batch in ", forms_.size(), " models take ",
          FormatBytes(batch_bytes), "; beside the largest phase, ", FormatBytes(result_.plan_bytes),
          ", ", context_.limits.memory_source, " leaves ", FormatBytes(std::max<int64_t>(room, 0)),
          ". Compare fewer models at a time, lower data.max_length or "
          "eval.per_device_eval_batch_size, or allow more memory"));
    }
    if (is_host) result_.plan_bytes += batches_per_part_ * batch_bytes;
    return absl::OkStatus();
  }

  absl::Status Annotated(const absl::Status& status) const {
    return proto::Annotate(status, absl::StrCat("one layer of ", forms_.size(), " models at once"));
  }

  absl::Status RunPart(int64_t first, int64_t end) {
    micro_batches_.clear();
    for (int64_t i = first; i < end; ++i) {
      micro_batches_.push_back(std::move(batcher_.Step(i).front()));
    }
    streams_.assign(forms_.size(), std::vector<std::vector<uint8_t>>(micro_batches_.size()));
    if (absl::Status s = Embed(); !s.ok()) return s;
    if (absl::Status s = layers_->Open(); !s.ok()) return s;
    for (int64_t layer = 0; layer < spec_.layers; ++layer) {
      if (absl::Status s = RunLayer(layer, first, end); !s.ok()) return s;
    }
    layers_->Close();
    if (absl::Status s = head_->Open(); !s.ok()) return s;
    for (size_t b = 0; b < micro_batches_.size(); ++b) {
      if (absl::Status s = ScoreBatch(b); !s.ok()) return s;
      if (absl::Status s = TellOf(spec_.layers, b, first, end); !s.ok()) return s;
    }
    head_->Close();
    return absl::OkStatus();
  }

  absl::Status Embed() {
    const std::vector<size_t> ends = EndsOf(forms_);
    for (size_t f = 0; f < forms_.size(); ++f) {
      if (ends[f] != f) {
        streams_[f] = streams_[ends[f]];
        continue;
      }
      auto run = EmbeddingRun::Create(context_, forms_[f]);
      if (!run.ok()) return run.status();
      if (absl::Status s = (*run)->Open(); !s.ok()) return s;
      for (size_t b = 0; b < micro_batches_.size(); ++b) {
        std::vector<uint8_t>& stream = streams_[f][b];
        stream.resize(micro_batches_[b].ids.size() * stream_bytes_[f]);
        const absl::Status s =
            (*run)->Run(micro_batches_[b].inputs(), stream.data(), int64_t(stream.size()));
        if (!s.ok()) return s;
      }
    }
    return absl::OkStatus();
  }

  kernels::Tensor View(DType dtype, std::vector<uint8_t>* stream) const {
    const int64_t tokens = int64_t(stream->size()) / (spec_.hidden * kernels::SizeOf(dtype));
    return {stream->data(), dtype, tokens, spec_.hidden, spec_.hidden};
  }

  // Behind batch `b` of the part [first, end), in a layer or, as the last of them, the head.
  absl::Status TellOf(int64_t layer, size_t b, int64_t first, int64_t end) const {
    const double in_layer = double(b + 1) / double(micro_batches_.size());
    const double part = (double(layer) + in_layer) / double(spec_.layers + 1);
    return Tell(options_.progress, (double(first) + part * double(end - first)) / double(batches_));
  }

  absl::Status RunLayer(int64_t layer, int64_t first, int64_t end) {
    if (absl::Status s = layers_->Load(layer); !s.ok()) return s;
    for (size_t b = 0; b < micro_batches_.size(); ++b) {
      if (absl::Status s = layers_->StageBatch(micro_batches_[b].inputs()); !s.ok()) return s;
      std::vector<uint8_t> probe, reference;
      if (options_.probe) {
        const DType type = forms_[options_.probe->form].compute;
        probe.resize(micro_batches_[b].ids.size() * stream_bytes_[options_.probe->form]);
        ConvertStream(View(forms_[0].compute, &streams_[0][b]), View(type, &probe));
        reference = probe;
        if (absl::Status s = RunForm(options_.probe->form, &probe); !s.ok()) return s;
        if (absl::Status s = RunForm(options_.probe->reference, &reference); !s.ok()) return s;
      }
      for (size_t f = 0; f < forms_.size(); ++f) {
        if (absl::Status s = RunForm(f, &streams_[f][b]); !s.ok()) return s;
        result_.models[f].layers[layer].Add(CompareStreams(View(forms_[0].compute, &streams_[0][b]),
                                                           View(forms_[f].compute, &streams_[f][b]),
                                                           context_.threads));
      }
      if (options_.probe) {
        const DType type = forms_[options_.probe->form].compute;
        result_.alone[layer].Add(CompareStreams(View(type, &reference), View(type, &probe),
                                                View(forms_[0].compute, &streams_[0][b]),
                                                context_.threads));
      }
      if (absl::Status s = TellOf(layer, b, first, end); !s.ok()) return s;
    }
    return absl::OkStatus();
  }

  absl::Status RunForm(size_t form, std::vector<uint8_t>* stream) {
    return layers_->Run(form, stream->data(), int64_t(stream->size()));
  }

  // The trained rows of a batch, so many at a time as logits may stand on the host.
  absl::Status ScoreBatch(size_t b) {
    const MicroBatch& batch = micro_batches_[b];
    for (int64_t first = 0; first < int64_t(batch.rows.size()); first += head_rows_) {
      const int64_t rows = std::min<int64_t>(head_rows_, int64_t(batch.rows.size()) - first);
      baseline_.resize(rows * spec_.vocab);
      prepared_.resize(rows);
      for (size_t f = 0; f < forms_.size(); ++f) {
        if (absl::Status s = Predict(f, b, first, rows); !s.ok()) return s;
        std::vector<RowScore> scores(rows);
        ForEachInParallel(rows, context_.threads, 1, [&](int64_t r) {
          const int32_t target = batch.targets[first + r];
          const absl::Span<float> expected = Row(&baseline_, r);
          if (f == 0) {
            prepared_[r] = PrepareBaseline(expected, spec_.logit_softcap);
            scores[r] = ScoreBaseline(expected, prepared_[r], target);
          } else {
            scores[r] =
                ScoreRow(expected, prepared_[r], Row(&logits_, r), spec_.logit_softcap, target);
          }
        });
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t sample = SampleOf(batch, batch.rows[first + r]);
          if (!std::isfinite(scores[r].loss + scores[r].kl)) return NotFinite(f, sample);
          Count(scores[r], sample, &result_.models[f]);
        }
      }
    }
    return absl::OkStatus();
  }

  absl::Span<float> Row(std::vector<float>* logits, int64_t r) const {
    return absl::MakeSpan(*logits).subspan(r * spec_.vocab, spec_.vocab);
  }

  absl::Status Predict(size_t f, size_t b, int64_t first, int64_t rows) {
    rows_.resize(rows * stream_bytes_[f]);
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(
          rows_.data() + r * stream_bytes_[f],
          streams_[f][b].data() + int64_t(micro_batches_[b].rows[first + r]) * stream_bytes_[f],
          stream_bytes_[f]);
    }
    logits_.resize(f == 0 ? 0 : rows * spec_.vocab);
    return head_->Run(f, rows_.data(), rows, (f == 0 ? baseline_ : logits_).data());
  }

  static int64_t SampleOf(const MicroBatch& batch, int32_t row) {
    const auto document =
        std::upper_bound(batch.documents.begin(), batch.documents.end(), row,
                         [](int32_t r, const DocumentBounds& d) { return r < d.query_begin; });
    return batch.samples[document - batch.documents.begin() - 1];
  }

  absl::Status NotFinite(size_t form, int64_t sample) const {
    return proto::NumbersBadError(absl::StrCat(
        "the model \"", forms_[form].name, "\" predicts NaN or infinity for the sample of line ",
        data_.samples[sample].line,
        ": its activations are too large. Give another checkpoint or adapter, or look whether "
        "compute_dtype: FP32 has them too"));
  }

  static void Count(const RowScore& row, int64_t sample, ModelScore* model) {
    SampleScore& s = model->samples[sample];
    ++s.tokens, ++model->tokens;
    s.loss += row.loss, model->loss += row.loss;
    s.kl += row.kl, model->kl += row.kl;
    model->correct += row.correct;
    model->agree += row.agrees;
  }

  const StreamContext& context_;
  const ModelSpec& spec_;
  const absl::Span<const ModelForm> forms_;
  const Dataset& data_;
  const Batcher& batcher_;
  const CompareOptions& options_;
  const int64_t batches_;
  int64_t batches_per_part_ = 0;
  int64_t head_rows_ = 0;
  std::vector<int64_t> stream_bytes_;  // of one token, by form
  std::unique_ptr<LayerRun> layers_;
  std::unique_ptr<HeadRun> head_;
  std::vector<MicroBatch> micro_batches_;                   // of the part
  std::vector<std::vector<std::vector<uint8_t>>> streams_;  // by form and batch of the part
  std::vector<uint8_t> rows_;
  std::vector<float> baseline_, logits_;
  std::vector<BaselineRow> prepared_;
  Comparison result_;
};

}  // namespace

double ModelScore::Perplexity() const { return std::exp(Loss()); }

absl::StatusOr<Comparison> CompareModels(const StreamContext& context,
                                         absl::Span<const ModelForm> forms, const Dataset& data,
                                         const Batcher& batcher, const CompareOptions& options) {
  return Comparer(context, forms, data, batcher, options).Run();
}

}  // namespace qlora::engine
