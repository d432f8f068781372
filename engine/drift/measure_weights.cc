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
// its residual where that is factored.
int64_t HostBytes(const WeightRow& row, const quant::QuantSpec& spec, bool with_residual) {
  return QuantizedBytes(spec, row.Count()) + 16 * spec.BlockCount(row.Count()) +
         (with_residual ? 4 * row.Count() : 0);
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
  const int64_t group = int64_t{q.spec.block_size} * quant::QuantSpec::kGroupSize;
  std::vector<float> residual(n), coded(std::min(n, group));
  ConvertElements(type, tensor.data(), n, DType::kF32, residual.data());
  for (int64_t begin = 0; begin < n; begin += group) {
    const int64_t count = std::min(group, n - begin);
    DequantizeRange(q.View(), begin, count, coded.data());
    for (int64_t i = 0; i < count; ++i) residual[begin + i] -= coded[i];
  }
  return residual;
}

const AdaptedModule* FindTarget(const LoraTargets& targets, const std::string& module) {
  const auto found = std::find_if(targets.modules.begin(), targets.modules.end(),
                                  [&](const AdaptedModule& m) { return m.module == module; });
  return found == targets.modules.end() ? nullptr : &*found;
}

}  // namespace

WeightError Total(const std::vector<NamedWeightError>& errors) {
  WeightError total;
  for (const NamedWeightError& e : errors) total.Add(e.error);
  return total;
}

absl::StatusOr<std::vector<NamedWeightError>> MeasureLoadedWeights(
    const ShardedModel& model, const WeightErrorOptions& options, Execution* execution) {
  const Storage& storage = execution->plan().run.storage;
  std::vector<NamedWeightError> errors;
  for (const WeightSlot& slot : storage.weights) {
    if (!slot.quantized.codes) continue;
    HostWeight unpacked;
    absl::StatusOr<WeightError> error =
        MeasureSlot(model, slot, storage.dynamic_map, options, execution, &unpacked);
    if (!error.ok()) return error.status();
    errors.push_back({slot.row.module, *error});
  }
  return errors;
}

absl::StatusOr<WeightMeasurements> MeasureWeights(const StreamContext& context,
                                                  absl::Span<const ModelForm> forms,
                                                  const WeightErrorOptions& options,
                                                  const ResidualOptions& residual,
                                                  const std::function<void(double)>& progress) {
  const bool with_residual = !residual.targets.modules.empty();
  StreamContext beside = context;
  if (context.device->info().is_host) {
    int64_t most = 0;
    for (const WeightRow& row : WeightRows(*context.spec)) {
      for (const ModelForm& form : forms) {
        most = std::max(most, HostBytes(row, *form.quant, with_residual));
      }
    }
    beside.limits.other.push_back({"a weight that is measured", most});
    beside.limits.other.push_back(
        {"the adapter from the residual", residual.targets.ParameterCount() * 4});
  }
  auto run = LayerRun::Create(beside, forms, /*with_pieces=*/false);
  if (!run.ok()) return run.status();
  if (absl::Status s = (*run)->Open(); !s.ok()) return s;
  WeightMeasurements result{.of_form = std::vector<std::vector<NamedWeightError>>(forms.size())};
  result.residual.lora_alpha = residual.lora_alpha;
  result.residual.use_rslora = residual.use_rslora;
  if (with_residual) result.residual.r = residual.targets.modules[0].rank;
  double captured = 0;
  for (int64_t layer = 0; layer < context.spec->layers; ++layer) {
    if (absl::Status s = (*run)->Load(layer); !s.ok()) return s;
    const std::vector<WeightRow>& rows = (*run)->RowsOf(layer);
    for (size_t f = 0; f < forms.size(); ++f) {
      const Storage& storage = (*run)->StorageOf(f);
      for (size_t i = 0; i < rows.size(); ++i) {
        WeightSlot slot = storage.weights[i];
        if (!slot.quantized.codes) continue;
        slot.row = rows[i];
        HostWeight unpacked;
        absl::StatusOr<WeightError> error = MeasureSlot(*forms[f].model, slot, storage.dynamic_map,
                                                        options, (*run)->execution(), &unpacked);
        if (!error.ok()) return error.status();
        result.of_form[f].push_back({slot.row.module, *error});
        const AdaptedModule* target = FindTarget(residual.targets, slot.row.module);
        if (f > 0 || target == nullptr) continue;
        const ShardedModel::Tensor tensor = *forms[f].model->Get(slot.row.name);
        ResidualFactors factors =
            FactorResidual(ResidualOf(tensor, unpacked), *target, residual.seed, options.threads);
        captured += factors.captured * error->noise;
        result.residual.modules[slot.row.module] = std::move(factors.factors);
      }
    }
    if (progress) progress(double(layer + 1) / double(context.spec->layers));
  }
  for (const AdaptedModule& target : residual.targets.modules) {
    if (result.residual.modules.contains(target.module)) continue;
    // Not quantized: nothing to take back.
    AdapterWeights::Factors& factors = result.residual.modules[target.module];
    factors = {.in = target.in, .out = target.out};
    factors.a.resize(target.rank * target.in);
    factors.b.resize(target.out * target.rank);
    InitializeLoraA(residual.seed, target, absl::MakeSpan(factors.a));
  }
  const double noise = Total(result.of_form[0]).noise;
  result.residual_captured = noise > 0 ? captured / noise : 0;
  return result;
}

}  // namespace qlora::engine
