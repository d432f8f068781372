#include "engine/drift/layer_run.h"

#include <algorithm>
#include <set>
#include <utility>

#include "engine/model/element_convert.h"
#include "engine/model/load_weights.h"
#include "engine/model/unpack_weight.h"

namespace qlora::engine {
namespace {

using kernels::DType;
using kernels::Tensor;

ModelSpec SpecOf(const ModelSpec& spec, const ModelForm& form) {
  ModelSpec result = spec;
  result.stored_dtype = form.dense;
  result.kept_in_16_bits = form.kept;
  return result;
}

}  // namespace

LayerRun::LayerRun(const StreamContext& context, absl::Span<const ModelForm> forms)
    : context_(context), spec_(*context.spec), forms_(forms), rows_(spec_.layers) {
  for (WeightRow& row : WeightRows(spec_)) {
    if (row.layer >= 0) rows_[row.layer].push_back(std::move(row));
  }
  for (const ModelForm& form : forms_) {
    std::vector<size_t>& stores = store_of_.emplace_back();
    for (int64_t layer = 0; layer < spec_.layers; ++layer) {
      stores.push_back(StoreFor(form, layer));
    }
  }
}

size_t LayerRun::StoreFor(const ModelForm& form, int64_t layer) {
  std::vector<bool> dense;
  for (const WeightRow& row : rows_[layer]) {
    dense.push_back(!form.quant || !row.lora_target ||
                    std::find(form.kept.begin(), form.kept.end(), row.module) != form.kept.end());
  }
  const bool all_dense = std::find(dense.begin(), dense.end(), false) == dense.end();
  for (size_t i = 0; i < stores_.size(); ++i) {
    const ModelForm& other = *stores_[i].form;
    if (other.model == form.model && other.compute == form.compute && other.dense == form.dense &&
        other.adapter == form.adapter && stores_[i].dense == dense &&
        (all_dense || other.quant == form.quant)) {
      return i;
    }
  }
  Store& store = stores_.emplace_back();
  store.form = &form;
  store.dense = std::move(dense);
  return stores_.size() - 1;
}

absl::StatusOr<std::unique_ptr<LayerRun>> LayerRun::Create(const StreamContext& context,
                                                           absl::Span<const ModelForm> forms,
                                                           bool with_pieces) {
  std::unique_ptr<LayerRun> run(new LayerRun(context, forms));
  auto phase = StreamPhase::Create(
      context, run->LoadingBytesOfForms(),
      [&](const KernelSelection& kernels) { return run->Record(kernels, with_pieces); });
  if (!phase.ok()) return phase.status();
  run->phase_ = *std::move(phase);
  return run;
}

int64_t LayerRun::LoadingBytesOfForms() const {
  int64_t most = 0;
  for (const ModelForm& form : forms_) {
    if (!form.quant) continue;
    const StorageOptions options{.mode = proto::Mode::QLORA, .quant = *form.quant};
    most = std::max(most, LoadingBytes(&*form.model, SpecOf(spec_, form), options, *context_.device,
                                       /*writes_cache=*/true));
  }
  return most;
}

Storage LayerRun::AddStore(const Store& store, const Storage* tables_of, Program* program) const {
  const ModelForm& form = *store.form;
  StorageOptions options{.mode = form.quant ? proto::Mode::QLORA : proto::Mode::LORA,
                         .compute = form.compute,
                         .quant = form.quant.value_or(quant::QuantSpec{}),
                         .training = false,
                         .rope_positions = context_.rope_positions,
                         .rows = rows_[0]};
  for (size_t i = 0; i < options.rows.size(); ++i) options.rows[i].quantizable = !store.dense[i];
  if (!store.adapted.empty()) options.lora.emplace_back().modules = store.adapted;
  return AddStorage(SpecOf(spec_, form), options, program, tables_of);
}

RecordedRun LayerRun::Record(const KernelSelection& kernels, bool with_pieces) {
  RecordedRun run;
  Program* program = &run.program;
  for (Store& store : stores_) {
    store.adapted.clear();
    store.piece.clear();
    const AdapterWeights* adapter = store.form->adapter;
    for (size_t i = 0; adapter != nullptr && i < rows_[0].size(); ++i) {
      // Slots for what is adapted in any layer; where a layer has none, B is zero.
      const bool any = std::any_of(rows_.begin(), rows_.end(), [&](const auto& rows) {
        return rows[i].lora_target && adapter->modules.contains(rows[i].module);
      });
      if (!any) continue;
      const WeightRow& row = rows_[0][i];
      store.adapted.push_back({.row = int64_t(i),
                               .module = row.module,
                               .in = row.cols,
                               .out = row.rows,
                               .rank = adapter->r,
                               .scaling = adapter->Scaling()});
    }
    store.storage = AddStore(store, &store == &stores_[0] ? nullptr : &stores_[0].storage, program);
  }
  run.storage = stores_[0].storage;
  if (!with_pieces) return run;
  batch_ = AddBatchInputs(program, {context_.capacity.tokens, context_.capacity.documents, 0}, 1,
                          "batch");
  stream_f32_ = stream_bf16_ = {};
  for (const ModelForm& form : forms_) {
    Tensor& stream = form.compute == DType::kF32 ? stream_f32_ : stream_bf16_;
    if (stream) continue;
    stream = program->AddBuffer("residual stream", BufferClass::kStepOutputs, form.compute,
                                context_.capacity.tokens, spec_.hidden);
  }
  for (size_t f = 0; f < forms_.size(); ++f) {
    for (int64_t layer = 0; layer < spec_.layers; ++layer) {
      Store& store = stores_[store_of_[f][layer]];
      const int64_t next = int64_t(program->pieces().size());
      if (!store.piece.try_emplace(spec_.window[layer], next).second) continue;
      const Tensor stream = store.form->compute == DType::kF32 ? stream_f32_ : stream_bf16_;
      Recorder recorder(program, context_.device, &kernels, "layer");
      ModelPass(store.storage, batch_, &recorder, false).Layer(0, layer, stream, stream);
      recorder.Finish(false);
    }
  }
  return run;
}

absl::Status LayerRun::Load(int64_t layer) {
  layer_ = layer;
  std::set<size_t> used;
  for (const std::vector<size_t>& stores : store_of_) used.insert(stores[layer]);
  for (const size_t i : used) {
    if (absl::Status s = LoadStore(stores_[i], layer); !s.ok()) return s;
  }
  // Every form has read what it needed.
  ReleaseSources(layer);
  return absl::OkStatus();
}

void LayerRun::ReleaseSources(int64_t layer) const {
  for (const ModelForm& form : forms_) {
    for (const WeightRow& row : rows_[layer]) {
      const absl::StatusOr<ShardedModel::Tensor> tensor = form.model->Get(row.name);
      if (tensor.ok()) tensor->file->ReleasePages(tensor->bytes());
    }
  }
}

absl::Status LayerRun::LoadStore(const Store& store, int64_t layer) {
  for (size_t i = 0; i < store.storage.weights.size(); ++i) {
    WeightSlot slot = store.storage.weights[i];
    slot.row.name = rows_[layer][i].name;
    slot.row.module = rows_[layer][i].module;
    if (absl::Status s = LoadWeight(*store.form->model, slot, phase_->execution()); !s.ok()) {
      return s;
    }
  }
  return LoadAdapter(store, layer);
}

absl::Status LayerRun::LoadAdapter(const Store& store, int64_t layer) {
  for (size_t i = 0; i < store.adapted.size(); ++i) {
    const AdaptedModule& module = store.adapted[i];
    const auto& modules = store.form->adapter->modules;
    const auto found = modules.find(rows_[layer][module.row].module);
    const AdapterSlot& slot = store.storage.adapters.front()[i];
    for (const bool is_b : {false, true}) {
      const Tensor view = store.storage.ComputeView(is_b ? slot.b_parameter : slot.a_parameter);
      std::vector<float> values(view.Count());
      if (found != modules.end()) values = is_b ? found->second.b : found->second.a;
      std::vector<uint8_t> bytes(view.Extent());
      ConvertElements(DType::kF32, reinterpret_cast<const uint8_t*>(values.data()), view.Count(),
                      view.dtype, bytes.data());
      const absl::Status s = phase_->execution()->Write(view, bytes.data(), view.Extent());
      if (!s.ok()) return s;
    }
  }
  return absl::OkStatus();
}

absl::Status LayerRun::StageBatch(const MicroBatchInputs& batch) {
  MicroBatchInputs inputs = batch;
  inputs.rows = inputs.targets = {};
  const std::vector<uint8_t> bytes = EncodeBatch(batch_, inputs, {});
  return phase_->execution()->Stage(batch_.live_tokens, bytes.data(), int64_t(bytes.size()));
}

absl::Status LayerRun::Run(size_t form, void* stream, int64_t bytes) {
  Execution* execution = phase_->execution();
  const Store& store = stores_[store_of_[form][layer_]];
  const Tensor view = store.form->compute == DType::kF32 ? stream_f32_ : stream_bf16_;
  if (absl::Status s = execution->Write(view, stream, bytes); !s.ok()) return s;
  if (absl::Status s = execution->Run(store.piece.at(spec_.window[layer_])); !s.ok()) return s;
  return execution->Read(view, stream, bytes);
}

const Storage& LayerRun::StorageOf(size_t form) const {
  return stores_[store_of_[form][layer_]].storage;
}

}  // namespace qlora::engine
