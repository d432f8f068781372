#include "engine/merge/merged_model.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/input_error.h"
#include "engine/io/json_file.h"
#include "engine/io/model_files.h"
#include "engine/io/safetensors_writer.h"
#include "engine/merge/adapter_delta.h"
#include "engine/model/element_convert.h"

namespace qlora::engine {
namespace {

using kernels::DType;

// Values of a weight merged at a time: 8 MiB of fp32, enough for the product to run at its speed.
constexpr int64_t kChunkValues = int64_t{1} << 21;

struct Shard {
  std::string name;
  std::vector<TensorSpec> tensors;
  int64_t bytes = 0;
};

class MergedModel {
 public:
  MergedModel(const MergeInput& input, const MergeOptions& options, const FileMaker& make)
      : in_(input), options_(options), make_(make) {
    for (WeightRow& row : WeightRows(in_.spec)) {
      values_ += row.Count();
      const std::string name = row.name;
      rows_.emplace(name, std::move(row));
    }
  }

  absl::Status Write(kernels::Device* device) {
    absl::StatusOr<std::unique_ptr<AdapterDelta>> delta =
        AdapterDelta::Create(in_.adapter, kChunkValues, device);
    if (!delta.ok()) return proto::DoesNotFitError(delta.status().message());
    delta_ = *std::move(delta);
    if (absl::Status s = CutShards(); !s.ok()) return s;
    for (const Shard& shard : shards_) {
      if (absl::Status s = WriteShard(shard); !s.ok()) return s;
    }
    return shards_.size() > 1 ? WriteIndex() : absl::OkStatus();
  }

 private:
  // Null for what has no adapter; biases have their linear's module.
  const AdapterWeights::Factors* FactorsOf(const WeightRow& row) const {
    const auto found = in_.adapter.modules.find(row.module);
    return found == in_.adapter.modules.end() || !row.lora_target ? nullptr : &found->second;
  }
  bool IsCopied(const WeightRow& row) const {
    return FactorsOf(row) == nullptr && !in_.base.Replaces(row);
  }

  // In the model's order, so that a shard is some layers.
  absl::Status CutShards() {
    for (const WeightRow& row : WeightRows(in_.spec)) {
      TensorSpec spec{.name = row.name, .dtype = Dtype::kBF16, .shape = {row.rows, row.cols}};
      if (IsCopied(row)) {
        const absl::StatusOr<ShardedModel::Tensor> tensor = in_.model.Get(row.name);
        if (!tensor.ok()) return AsInputError(tensor.status());
        spec.dtype = tensor->info->dtype;
        spec.shape = tensor->info->shape;
      } else {
        const absl::StatusOr<Dtype> type = in_.base.TypeOf(row);
        if (!type.ok()) return type.status();
        spec.dtype = *type;
      }
      const int64_t bytes = row.Count() * DtypeBits(spec.dtype) / 8;
      if (shards_.empty() || shards_.back().bytes + bytes > options_.max_shard_bytes) {
        shards_.emplace_back();
      }
      shards_.back().bytes += bytes;
      shards_.back().tensors.push_back(std::move(spec));
    }
    for (size_t i = 0; i < shards_.size(); ++i) {
      shards_[i].name = shards_.size() == 1 ? kModelFile
                                            : absl::StrFormat("model-%05d-of-%05d.safetensors",
                                                              i + 1, shards_.size());
    }
    return absl::OkStatus();
  }

  absl::Status WriteShard(const Shard& shard) {
    absl::StatusOr<std::unique_ptr<WritableFile>> file = make_(shard.name);
    if (!file.ok()) return file.status();
    absl::StatusOr<SafetensorsWriter> writer =
        SafetensorsWriter::Create(*std::move(file), shard.tensors);
    if (!writer.ok()) return writer.status();
    for (const TensorSpec& spec : writer->order()) {
      const WeightRow& row = rows_.at(spec.name);
      const absl::Status status =
          IsCopied(row) ? Copy(row, &*writer) : Merge(row, spec.dtype, &*writer);
      if (!status.ok()) return status;
      done_ += row.Count();
      const double share = double(done_) / double(values_);
      if (absl::Status s = Tell(options_.progress, share); !s.ok()) return s;
    }
    return writer->Finish();
  }

  absl::Status Copy(const WeightRow& row, SafetensorsWriter* writer) {
    const absl::StatusOr<ShardedModel::Tensor> tensor = in_.model.Get(row.name);
    if (!tensor.ok()) return AsInputError(tensor.status());
    constexpr int64_t kChunkBytes = kChunkValues * 4;
    for (int64_t begin = 0; begin < tensor->info->bytes; begin += kChunkBytes) {
      const absl::Span<const uint8_t> part = tensor->bytes().subspan(begin, kChunkBytes);
      if (absl::Status s = writer->Append(part); !s.ok()) return s;
      tensor->file->ReleasePages(part);
    }
    return absl::OkStatus();
  }

  absl::Status Merge(const WeightRow& row, Dtype type, SafetensorsWriter* writer) {
    const AdapterWeights::Factors* const module = FactorsOf(row);
    const DType to = *FloatType(type);
    const int64_t rows_at_a_time = std::clamp<int64_t>(kChunkValues / row.cols, 1, row.rows);
    std::vector<float> values;
    std::vector<uint8_t> bytes;
    for (int64_t first = 0; first < row.rows; first += rows_at_a_time) {
      const int64_t count = std::min(rows_at_a_time, row.rows - first) * row.cols;
      values.resize(count);
      if (absl::Status s = in_.base.Read(row, first, absl::MakeSpan(values)); !s.ok()) return s;
      if (module != nullptr) {
        if (absl::Status s = delta_->AddTo(*module, first, absl::MakeSpan(values)); !s.ok()) {
          return s;
        }
      }
      bytes.resize(count * kernels::SizeOf(to));
      const int64_t bad = ConvertElements(
          DType::kF32, reinterpret_cast<const uint8_t*>(values.data()), count, to, bytes.data());
      if (bad >= 0) {
        return proto::BadDataError(absl::StrCat("merged into ", row.name, ", element ",
                                                first * row.cols + bad, " is ", values[bad],
                                                ", more than ", DtypeName(type),
                                                " holds: merge an adapter that was trained with a "
                                                "lower learning rate"));
      }
      if (absl::Status s = writer->Append(bytes); !s.ok()) return s;
    }
    return absl::OkStatus();
  }

  absl::Status WriteIndex() {
    nlohmann::json index;
    int64_t total = 0;
    for (const Shard& shard : shards_) {
      total += shard.bytes;
      for (const TensorSpec& spec : shard.tensors) index["weight_map"][spec.name] = shard.name;
    }
    index["metadata"]["total_size"] = total;
    return WriteTextFile(make_, kModelIndexFile, index.dump(2) + "\n");
  }

  const MergeInput& in_;
  const MergeOptions& options_;
  const FileMaker& make_;
  std::unique_ptr<AdapterDelta> delta_;
  absl::flat_hash_map<std::string, WeightRow> rows_;  // by tensor name
  std::vector<Shard> shards_;
  int64_t values_ = 0, done_ = 0;
};

}  // namespace

absl::Status WriteMergedModel(Env* env, const MergeInput& input, const MergeOptions& options,
                              const FileMaker& make, kernels::Device* device) {
  absl::StatusOr<nlohmann::json> config =
      ReadJsonFile(env, JoinPath(input.model.folder(), kConfigFile));
  if (!config.ok()) return AsInputError(config.status());
  if (absl::Status s = MergedModel(input, options, make).Write(device); !s.ok()) return s;
  if (absl::Status s = CopyModelFiles(env, input.model.folder(), make); !s.ok()) return s;
  config->erase("quantization_config");
  return WriteTextFile(make, kConfigFile, config->dump(2) + "\n");
}

}  // namespace qlora::engine
