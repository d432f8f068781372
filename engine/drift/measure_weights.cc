#include "engine/drift/measure_weights.h"

#include <algorithm>
#include <utility>

#include "engine/drift/layer_run.h"
#include "engine/drift/residual_init.h"
#include "engine/input_error.h"
#include "engine/lora/initialize.h"
#include "engine/model/element_convert.h"
#include "engine/model/unpack_weight.h"

namespace qlora::engine {
namespace {

using kernels::DType;

// What stands on the host while a weight is measured: its 4-bit bytes, the errors of its blocks;
// its residual where that is factored for `target`.
int64_t HostBytes(const WeightRow& row, const quant::QuantSpec& spec, const AdaptedModule* target) {
  return QuantizedBytes(spec, row.Count()) + 16 * spec.BlockCount(row.Count()) +
         (target != nullptr ? 4 * row.Count() + FactorResidualBytes(*target) : 0);
}

absl::StatusOr<WeightError> MeasureSlot(const ShardedModel& model, const WeightSlot& slot,
                                        kernels::Tensor dynamic_map,
                                        const WeightErrorOptions& options, Execution* execution,
                                        HostWeight* unpacked) {
  absl::StatusOr<ShardedModel::Tensor> tensor = model.Get(slot.row.name);
  if (!tensor.ok()) return AsInputError(tensor.status());
  absl::StatusOr<HostWeight> weight = UnpackToHost(slot, dynamic_map, execution);
  if (!weight.ok()) return weight.status();
  *unpacked = *std::move(weight);
  return MeasureWeightError(*FloatType(tensor->info->dtype), tensor->data(), slot.row.Count(),
                            unpacked->View(), options);
}

// W − q(W), fp32.
std::vector<float> ResidualOf(const ShardedModel::Tensor& tensor, const HostWeight& q) {
  const DType type = *FloatType(tensor.info->dtype);
  const int64_t n = tensor.info->elements();
  std::vector<float> residual(n), coded(q.spec.block_size);
  ConvertElements(type, tensor.data(), n, DType::kF32, residual.data());
  for (int64_t begin = 0; begin < n; begin += q.spec.block_size) {
    const int64_t count = std::min<int64_t>(q.spec.block_size, n - begin);
    DequantizeRange(q.View(), begin, count, coded.data());
    for (int64_t i = 0; i < count; ++i) residual[begin + i] -= coded[i];
  }
  return residual;
}

// One pass over the layers.
class Measurer {
 public:
  Measurer(const StreamContext& context, absl::Span<const ModelForm> forms,
           const WeightErrorOptions& options, const ResidualOptions& residual)
      : context_(context), forms_(forms), options_(options), residual_(residual) {
    result_.of_form.resize(forms.size());
    if (residual.targets.modules.empty()) return;
    result_.residual.r = residual.targets.modules[0].rank;
    result_.residual.lora_alpha = residual.lora_alpha;
    result_.residual.use_rslora = residual.use_rslora;
  }

  absl::StatusOr<WeightMeasurements> Run(const Progress& progress) {
    auto run = LayerRun::Create(WithHostBytes(), forms_, /*with_pieces=*/false);
    if (!run.ok()) return run.status();
    if (absl::Status s = (*run)->Open(); !s.ok()) return s;
    for (int64_t layer = 0; layer < context_.spec->layers; ++layer) {
      if (absl::Status s = (*run)->Load(layer); !s.ok()) return s;
      for (size_t f = 0; f < forms_.size(); ++f) {
        if (absl::Status s = MeasureLayer(layer, f, run->get()); !s.ok()) return s;
      }
      (*run)->ReleaseSources(layer);
      const double share = double(layer + 1) / double(context_.spec->layers);
      if (absl::Status s = Tell(progress, share); !s.ok()) return s;
    }
    StartUnquantized();
    const double noise = Total(result_.of_form[0]).noise;
    result_.residual_captured = noise > 0 ? captured_ / noise : 0;
    return std::move(result_);
  }

 private:
  StreamContext WithHostBytes() const {
    StreamContext context = context_;
    if (!context.device->info().is_host) return context;
    int64_t most = 0;
    for (const WeightRow& row : WeightRows(*context.spec)) {
      if (!row.quantizable) continue;
      for (const ModelForm& form : forms_) {
        most = std::max(most, HostBytes(row, *form.quant, TargetOf(row)));
      }
    }
    context.limits.other.push_back({"a weight that is measured", most});
    context.limits.other.push_back(
        {"the adapter from the residual", residual_.targets.ParameterCount() * 4});
    return context;
  }

  absl::Status MeasureLayer(int64_t layer, size_t f, LayerRun* run) {
    const Storage& storage = run->StorageOf(f);
    const std::vector<WeightRow>& rows = run->RowsOf(layer);
    for (size_t i = 0; i < rows.size(); ++i) {
      WeightSlot slot = storage.weights[i];
      if (!slot.quantized.codes) continue;
      slot.row = rows[i];
      HostWeight unpacked;
      absl::StatusOr<WeightError> error = MeasureSlot(*forms_[f].model, slot, storage.dynamic_map,
                                                      options_, run->execution(), &unpacked);
      if (!error.ok()) return error.status();
      result_.of_form[f].push_back({slot.row.module, *error});
      if (f == 0) Factor(slot.row, unpacked, error->noise);
    }
    return absl::OkStatus();
  }

  // Null where no residual is factored.
  const AdaptedModule* TargetOf(const WeightRow& row) const {
    const auto& targets = residual_.targets.modules;
    const auto found = std::find_if(targets.begin(), targets.end(),
                                    [&](const AdaptedModule& m) { return m.module == row.module; });
    return found == targets.end() ? nullptr : &*found;
  }

  void Factor(const WeightRow& row, const HostWeight& unpacked, double noise) {
    const AdaptedModule* const target = TargetOf(row);
    if (target == nullptr) return;
    ResidualFactors factors = FactorResidual(ResidualOf(*forms_[0].model->Get(row.name), unpacked),
                                             *target, residual_.seed, options_.threads);
    captured_ += factors.captured * noise;
    result_.residual.modules[row.module] = std::move(factors.factors);
  }

  // Of a target that is not quantized there is nothing to take back: it starts as always.
  void StartUnquantized() {
    for (const AdaptedModule& target : residual_.targets.modules) {
      const auto [place, is_new] = result_.residual.modules.try_emplace(target.module);
      if (!is_new) continue;
      AdapterWeights::Factors& factors = place->second;
      factors = {.in = target.in, .out = target.out};
      factors.a.resize(target.rank * target.in);
      factors.b.resize(target.out * target.rank);
      InitializeLoraA(residual_.seed, target, absl::MakeSpan(factors.a));
    }
  }

  const StreamContext& context_;
  const absl::Span<const ModelForm> forms_;
  const WeightErrorOptions& options_;
  const ResidualOptions& residual_;
  double captured_ = 0;  // Σe² that the residual's adapter takes back
  WeightMeasurements result_;
};

}  // namespace

WeightError Total(const std::vector<NamedWeightError>& errors) {
  WeightError total;
  for (const NamedWeightError& e : errors) total.Add(e.error);
  return total;
}

absl::StatusOr<std::vector<NamedWeightError>> MeasureLoadedWeights(
    const ShardedModel& model, const WeightErrorOptions& options, Execution* execution,
    const Progress& progress) {
  const Storage& storage = execution->plan().run.storage;
  std::vector<NamedWeightError> errors;
  int64_t done = 0;
  for (const WeightSlot& slot : storage.weights) {
    const double share = double(done++) / double(storage.weights.size());
    if (absl::Status s = Tell(progress, share); !s.ok()) return s;
    if (!slot.quantized.codes) continue;
    HostWeight unpacked;
    absl::StatusOr<WeightError> error =
        MeasureSlot(model, slot, storage.dynamic_map, options, execution, &unpacked);
    if (!error.ok()) return error.status();
    errors.push_back({slot.row.module, *error});
    const ShardedModel::Tensor source = *model.Get(slot.row.name);
    source.file->ReleasePages(source.bytes());
  }
  return errors;
}

absl::StatusOr<WeightMeasurements> MeasureWeights(const StreamContext& context,
                                                  absl::Span<const ModelForm> forms,
                                                  const WeightErrorOptions& options,
                                                  const ResidualOptions& residual,
                                                  const Progress& progress) {
  return Measurer(context, forms, options, residual).Run(progress);
}

}  // namespace qlora::engine
