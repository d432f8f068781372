// Writes quantized weights in bitsandbytes' layout, streaming: no weight is held on the host as a
// whole.

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/io/atomic_folder.h"
#include "engine/io/json_file.h"
#include "engine/io/model_files.h"
#include "engine/io/safetensors_writer.h"
#include "engine/model/prequantized.h"
#include "engine/model/unpack_weight.h"
#include "proto/errors.h"
#include "quant/dynamic_map.h"

namespace qlora::engine {
namespace {

using kernels::DType;
using kernels::Tensor;

// Bytes copied from the device at a time.
constexpr int64_t kChunk = 1 << 20;

// As Python prints a float: the shortest digits that read back the same, an exponent below 1e-4 and
// from 1e16 on.
std::string PythonFloat(double value) {
  char text[64];
  const double size = std::fabs(value);
  const bool plain = size == 0 || (size >= 1e-4 && size < 1e16);
  const auto format = plain ? std::chars_format::fixed : std::chars_format::scientific;
  std::string result(text, std::to_chars(text, text + sizeof(text), value, format).ptr);
  if (plain && !absl::StrContains(result, '.')) result += ".0";
  return result;
}

const char* TorchName(Dtype dtype) {
  return dtype == Dtype::kBF16 ? "bfloat16" : dtype == Dtype::kF16 ? "float16" : "float32";
}

// In the order and spacing of Python's json.dumps.
std::string StateJson(const WeightSlot& slot, Dtype original, float offset) {
  const quant::QuantSpec& spec = slot.base.quantized.spec;
  std::string text =
      absl::StrCat(R"({"quant_type": ")", quant::QuantTypeName(spec.type), R"(", "blocksize": )",
                   spec.block_size, R"(, "dtype": ")", TorchName(original), R"(", "shape": [)",
                   slot.row.rows, ", ", slot.row.cols, "]");
  if (spec.double_quant) {
    absl::StrAppend(&text, R"(, "nested_blocksize": )", quant::QuantSpec::kGroupSize,
                    R"(, "nested_dtype": "float32", "nested_offset": )", PythonFloat(offset));
  }
  return text + "}";
}

// What Transformers is to leave unquantized. A list of one's own replaces its default, the head; a
// name there also means every module that begins with it, so whole names only.
nlohmann::json SkippedModules(const ModelSpec& spec) {
  if (spec.kept_in_16_bits.empty()) return nullptr;
  nlohmann::json modules = spec.kept_in_16_bits;
  modules.push_back("lm_head");
  return modules;
}

std::string ConfigText(nlohmann::json config, const Storage& storage) {
  const StorageOptions& options = storage.options;
  config["quantization_config"] = {
      {"_load_in_4bit", true},
      {"_load_in_8bit", false},
      {"bnb_4bit_compute_dtype", options.compute == DType::kBf16 ? "bfloat16" : "float32"},
      {"bnb_4bit_quant_storage", "uint8"},
      {"bnb_4bit_quant_type", std::string(quant::QuantTypeName(options.quant.type))},
      {"bnb_4bit_use_double_quant", options.quant.double_quant},
      {"llm_int8_enable_fp32_cpu_offload", false},
      {"llm_int8_has_fp16_weight", false},
      {"llm_int8_skip_modules", SkippedModules(storage.spec)},
      {"llm_int8_threshold", 6.0},
      {"load_in_4bit", true},
      {"load_in_8bit", false},
      {"quant_method", "bitsandbytes"}};
  return config.dump(2) + "\n";
}

class Writer {
 public:
  Writer(const ShardedModel& model, Execution* execution)
      : model_(model), execution_(*execution), storage_(execution->plan().run.storage) {}

  absl::Status Write(std::unique_ptr<WritableFile> file, const Progress& progress) {
    for (const WeightSlot& slot : storage_.weights) {
      const absl::Status status = slot.quantized.codes ? AddQuantized(slot) : AddCopy(slot);
      if (!status.ok()) return status;
    }
    absl::StatusOr<SafetensorsWriter> writer =
        SafetensorsWriter::Create(std::move(file), std::move(specs_));
    if (!writer.ok()) return writer.status();
    int64_t done = 0;
    for (const TensorSpec& spec : writer->order()) {
      if (absl::Status s = WritePart(parts_.at(spec.name), &*writer); !s.ok()) return s;
      const double share = double(++done) / double(writer->order().size());
      if (absl::Status s = Tell(progress, share); !s.ok()) return s;
    }
    return writer->Finish();
  }

 private:
  enum class Content { kCopy, kCodes, kAbsmax, kNestedAbsmax, kCodeBook, kNestedMap, kState };
  struct Part {
    Content content;
    const WeightSlot* slot;
    ShardedModel::Tensor source = {};  // kCopy
    std::string text = {};             // kState
  };

  void Add(const std::string& name, Dtype dtype, std::vector<int64_t> shape, Part part) {
    specs_.push_back({name, dtype, std::move(shape)});
    parts_.emplace(name, std::move(part));
  }

  absl::Status AddCopy(const WeightSlot& slot) {
    const absl::StatusOr<ShardedModel::Tensor> tensor = model_.Get(slot.row.name);
    if (!tensor.ok()) return tensor.status();
    Add(slot.row.name, tensor->info->dtype, tensor->info->shape,
        {.content = Content::kCopy, .slot = &slot, .source = *tensor});
    return absl::OkStatus();
  }

  absl::Status AddQuantized(const WeightSlot& slot) {
    const quant::QuantSpec& spec = slot.base.quantized.spec;
    const std::string& name = slot.row.name;
    const int64_t n = slot.row.Count();
    Add(name, Dtype::kU8, {spec.CodeBytes(n), 1}, {.content = Content::kCodes, .slot = &slot});
    Add(name + ".absmax", spec.double_quant ? Dtype::kU8 : Dtype::kF32, {spec.BlockCount(n)},
        {.content = Content::kAbsmax, .slot = &slot});
    Add(name + ".quant_map", Dtype::kF32, {16}, {.content = Content::kCodeBook, .slot = &slot});
    float offset = 0;
    if (spec.double_quant) {
      Add(name + ".nested_absmax", Dtype::kF32, {spec.GroupCount(n)},
          {.content = Content::kNestedAbsmax, .slot = &slot});
      Add(name + ".nested_quant_map", Dtype::kF32, {quant::kDynamicMapSize},
          {.content = Content::kNestedMap, .slot = &slot});
      // The header needs the length of the JSON, so the offsets are needed before all else.
      if (absl::Status s = Unpack(slot); !s.ok()) return s;
      if (absl::Status s = execution_.device().CopyOut(&offset, unpacked_.offset.data, 4);
          !s.ok()) {
        return s;
      }
      if (!std::isfinite(offset)) {
        return absl::InternalError(absl::StrCat("tensor ", name, ": the offset is ", offset));
      }
    }
    absl::StatusOr<Dtype> original = OriginalDtype(slot.row);
    if (!original.ok()) return original.status();
    std::string state = StateJson(slot, *original, offset);
    // Apart: arguments may be evaluated in any order, and the text is moved from.
    const int64_t length = int64_t(state.size());
    Add(QuantStateName(slot.row, spec.type), Dtype::kU8, {length},
        {.content = Content::kState, .slot = &slot, .text = std::move(state)});
    return absl::OkStatus();
  }

  absl::StatusOr<Dtype> OriginalDtype(const WeightRow& row) {
    if (IsPrequantized(model_, row)) {
      std::vector<std::string> warnings;
      const absl::StatusOr<PrequantizedWeight> weight = ReadPrequantized(model_, row, &warnings);
      if (!weight.ok()) return weight.status();
      return weight->original_dtype;
    }
    const absl::StatusOr<ShardedModel::Tensor> tensor = model_.Get(row.name);
    if (!tensor.ok()) return tensor.status();
    return tensor->info->dtype;
  }

  // bitsandbytes' bytes of a slot, in the scratch. The parts of one weight follow one another in
  // the file's order, by name within a type, so one result is kept.
  absl::Status Unpack(const WeightSlot& slot) {
    if (unpacked_slot_ == &slot) return absl::OkStatus();
    unpacked_slot_ = nullptr;
    absl::StatusOr<kernels::QuantizedOutput> parts =
        UnpackWeight(slot, storage_.dynamic_map, &execution_);
    if (!parts.ok()) return parts.status();
    unpacked_slot_ = &slot;
    unpacked_ = *parts;
    return absl::OkStatus();
  }

  absl::Status WriteUnpacked(const WeightSlot& slot, Tensor kernels::QuantizedOutput::*member,
                             SafetensorsWriter* writer) {
    if (absl::Status s = Unpack(slot); !s.ok()) return s;
    const Tensor& view = unpacked_.*member;
    std::vector<uint8_t> chunk(std::min(kChunk, view.Extent()));
    for (int64_t begin = 0; begin < view.Extent(); begin += kChunk) {
      const int64_t size = std::min(kChunk, view.Extent() - begin);
      const uint8_t* from = static_cast<const uint8_t*>(view.data) + begin;
      if (absl::Status s = execution_.device().CopyOut(chunk.data(), from, size); !s.ok()) return s;
      if (absl::Status s = writer->Append(absl::MakeConstSpan(chunk).first(size)); !s.ok())
        return s;
    }
    return absl::OkStatus();
  }

  template <class T>
  static absl::Status AppendAll(const T& values, SafetensorsWriter* writer) {
    return writer->Append(
        {reinterpret_cast<const uint8_t*>(values.data()), values.size() * sizeof(*values.data())});
  }

  absl::Status WritePart(const Part& part, SafetensorsWriter* writer) {
    switch (part.content) {
      case Content::kCopy:
        return writer->Append(part.source.bytes());
      case Content::kCodes:
        return WriteUnpacked(*part.slot, &kernels::QuantizedOutput::codes, writer);
      case Content::kAbsmax:
        return WriteUnpacked(*part.slot, &kernels::QuantizedOutput::absmax, writer);
      case Content::kNestedAbsmax:
        return WriteUnpacked(*part.slot, &kernels::QuantizedOutput::nested_absmax, writer);
      case Content::kCodeBook:
        return AppendAll(quant::CodeValues(part.slot->base.quantized.spec.type), writer);
      case Content::kNestedMap:
        return AppendAll(quant::SignedDynamicMap(), writer);
      case Content::kState:
        break;
    }
    return AppendAll(part.text, writer);
  }

  const ShardedModel& model_;
  Execution& execution_;
  const Storage& storage_;
  std::vector<TensorSpec> specs_;
  absl::flat_hash_map<std::string, Part> parts_;
  const WeightSlot* unpacked_slot_ = nullptr;
  kernels::QuantizedOutput unpacked_;
};

}  // namespace

absl::Status WriteQuantizedFiles(Env* env, const FileMaker& make, const ShardedModel& model,
                                 Execution* execution, const QuantizedFilesOptions& options) {
  absl::StatusOr<nlohmann::json> config = ReadJsonFile(env, JoinPath(model.folder(), kConfigFile));
  if (!config.ok()) return config.status();
  absl::StatusOr<std::unique_ptr<WritableFile>> file = make(kModelFile);
  if (!file.ok()) return file.status();
  if (absl::Status s = Writer(model, execution).Write(*std::move(file), options.progress);
      !s.ok()) {
    return s;
  }
  if (options.with_model_files) {
    if (absl::Status s = CopyModelFiles(env, model.folder(), make); !s.ok()) return s;
  }
  return WriteTextFile(make, kConfigFile,
                       ConfigText(*std::move(config), execution->plan().run.storage));
}

absl::Status WritePrequantized(Env* env, const std::string& folder, const ShardedModel& model,
                               Execution* execution, const Progress& progress) {
  const StorageOptions& options = execution->plan().run.storage.options;
  if (options.mode != proto::Mode::QLORA) {
    return proto::BadJobError(
        "a checkpoint in bitsandbytes' layout holds 4-bit weights; this run has none");
  }
  if (absl::Status s = CheckBitsandbytesHas(options.quant); !s.ok()) return s;
  const std::string parent = ParentPath(folder);
  if (absl::Status s = env->CreateFolders(parent); !s.ok()) return s;
  absl::StatusOr<std::unique_ptr<FolderCommit>> commit =
      FolderCommit::Begin(env, parent, BaseName(folder));
  if (!commit.ok()) return commit.status();
  const FileMaker make = [&](const std::string& name) { return (*commit)->NewFile(name); };
  if (absl::Status s = WriteQuantizedFiles(env, make, model, execution,
                                           {.with_model_files = true, .progress = progress});
      !s.ok()) {
    return s;
  }
  return (*commit)->Commit({});
}

}  // namespace qlora::engine
