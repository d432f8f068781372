// What of engine/model/prequantized.h reads and checks the stored form, without a run to load it
// into.

#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/io/json_file.h"
#include "engine/model/prequantized.h"
#include "proto/errors.h"
#include "quant/dynamic_map.h"

namespace qlora::engine {
namespace {

using Json = nlohmann::json;
using quant::QuantType;

constexpr QuantType kTypes[] = {QuantType::kNf4, QuantType::kFp4E2M1, QuantType::kFp4E3M0,
                                QuantType::kInt4};
// The longest that bitsandbytes writes has some 200 bytes.
constexpr int64_t kMaxState = 4096;

std::vector<QuantType> StatesOf(const ShardedModel& model, const WeightRow& row) {
  std::vector<QuantType> types;
  for (const QuantType type : kTypes) {
    if (model.Has(QuantStateName(row, type))) types.push_back(type);
  }
  return types;
}

// Reads one weight's tensors and JSON, gathering faults.
class Reader {
 public:
  Reader(const ShardedModel& model, const WeightRow& row) : model_(model), row_(row) {}

  absl::StatusOr<PrequantizedWeight> Read(std::vector<std::string>* warnings) {
    const std::vector<QuantType> types = StatesOf(model_, row_);
    const std::string state_name = QuantStateName(row_, types.front());
    const ShardedModel::Tensor state = *model_.Get(state_name);
    if (types.size() > 1) Fault("it has more than one quant_state, one is allowed");
    result_.spec.type = types.front();
    if (state.info->dtype != Dtype::kU8 || state.info->bytes > kMaxState) {
      Fault(absl::StrCat(state_name, " is ", state.info->Describe(), ", allowed U8 with up to ",
                         kMaxState, " bytes of JSON"));
    } else {
      const absl::string_view text(reinterpret_cast<const char*>(state.data()), state.info->bytes);
      absl::StatusOr<Json> json = ParseJson(text, state_name);
      if (!json.ok()) {
        Fault(json.status().message());
      } else if (!json->is_object()) {
        Fault(absl::StrCat(state_name, " is no JSON object"));
      } else {
        ReadState(*json);
      }
    }
    if (faults_.empty()) ReadTensors(warnings);
    if (faults_.empty()) return result_;
    return proto::BadDataError(
        absl::StrCat(state.file->path(), ": tensor ", row_.name,
                     " in bitsandbytes' 4 bits: ", absl::StrJoin(faults_, "; ")));
  }

 private:
  void Fault(absl::string_view what) { faults_.emplace_back(what); }

  void ReadState(const Json& state) {
    static constexpr const char* kAlways[] = {"quant_type", "blocksize", "dtype", "shape"};
    static constexpr const char* kNested[] = {"nested_blocksize", "nested_dtype", "nested_offset"};
    size_t nested = 0, known = 0;
    for (const char* key : kAlways) {
      known += state.contains(key);
      if (!state.contains(key)) Fault(absl::StrCat("quant_state lacks \"", key, "\""));
    }
    for (const char* key : kNested) nested += state.contains(key);
    if (known + nested != state.size()) {
      Fault(absl::StrCat("quant_state holds keys that bitsandbytes has not: ", state.dump()));
    }
    if (nested != 0 && nested != std::size(kNested)) {
      Fault("quant_state has some of nested_blocksize, nested_dtype, nested_offset: all or none");
    }
    if (!faults_.empty()) return;
    result_.spec.double_quant = nested != 0;
    Expect(state, "quant_type", std::string(quant::QuantTypeName(result_.spec.type)));
    Expect(state, "shape", Json::array({row_.rows, row_.cols}));
    ReadBlockSize(state["blocksize"]);
    ReadDtype(state["dtype"]);
    if (!result_.spec.double_quant) return;
    Expect(state, "nested_blocksize", quant::QuantSpec::kGroupSize);
    Expect(state, "nested_dtype", "float32");
    const Json& offset = state["nested_offset"];
    // A double print of the fp32.
    if (offset.is_number()) result_.offset = static_cast<float>(offset.get<double>());
    if (!offset.is_number() || !std::isfinite(result_.offset)) {
      Fault(absl::StrCat("nested_offset is ", offset.dump(), ", allowed a number of fp32"));
    }
  }

  void Expect(const Json& state, const char* key, const Json& allowed) {
    if (state[key] != allowed) {
      Fault(absl::StrCat(key, " is ", state[key].dump(), ", allowed ", allowed.dump()));
    }
  }

  void ReadBlockSize(const Json& value) {
    quant::QuantSpec spec = result_.spec;
    const bool in_range = value.is_number_integer() && value >= quant::QuantSpec::kMinBlockSize &&
                          value <= quant::QuantSpec::kMaxBlockSize;
    if (in_range) spec.block_size = value.get<int>();
    if (!in_range || !spec.Validate().ok()) {
      Fault(absl::StrCat("blocksize is ", value.dump(), ", allowed a power of two from ",
                         quant::QuantSpec::kMinBlockSize, " to ", quant::QuantSpec::kMaxBlockSize));
    }
    result_.spec = spec;
  }

  void ReadDtype(const Json& value) {
    if (value == "bfloat16") {
      result_.original_dtype = Dtype::kBF16;
    } else if (value == "float16") {
      result_.original_dtype = Dtype::kF16;
    } else if (value == "float32") {
      result_.original_dtype = Dtype::kF32;
    } else {
      Fault(absl::StrCat("dtype is ", value.dump(),
                         ", allowed \"bfloat16\", \"float16\" or \"float32\""));
    }
  }

  void ReadTensors(std::vector<std::string>* warnings) {
    const quant::QuantSpec& spec = result_.spec;
    const int64_t n = row_.Count();
    ReadCodes(spec.CodeBytes(n));
    const Dtype scale = spec.double_quant ? Dtype::kU8 : Dtype::kF32;
    Get(".absmax", scale, spec.BlockCount(n), &result_.absmax);
    ShardedModel::Tensor map;
    if (Get(".quant_map", Dtype::kF32, 16, &map)) CheckCodeBook(map, warnings);
    if (!spec.double_quant) {
      for (const char* part : {".nested_absmax", ".nested_quant_map"}) {
        if (model_.Has(row_.name + part)) {
          Fault(absl::StrCat("tensor ", row_.name, part,
                             " contradicts a quant_state without nested_*"));
        }
      }
      return;
    }
    Get(".nested_absmax", Dtype::kF32, spec.GroupCount(n), &result_.nested_absmax);
    if (Get(".nested_quant_map", Dtype::kF32, quant::kDynamicMapSize, &map) &&
        std::memcmp(map.data(), quant::SignedDynamicMap().data(), map.info->bytes) != 0) {
      Fault(absl::StrCat("the values of ", map.info->name,
                         " are not bitsandbytes' signed dynamic map, the only one allowed"));
    }
  }

  bool Get(const char* part, Dtype dtype, int64_t elements, ShardedModel::Tensor* to) {
    const std::string name = row_.name + part;
    const absl::StatusOr<ShardedModel::Tensor> tensor = model_.Get(name);
    if (!tensor.ok()) {
      Fault(absl::StrCat("tensor ", name, " is missing"));
      return false;
    }
    *to = *tensor;
    const bool fits =
        tensor->info->dtype == dtype && tensor->info->shape == std::vector<int64_t>{elements};
    if (!fits) {
      Fault(absl::StrCat("tensor ", name, " is ", tensor->info->Describe(), ", allowed ",
                         DtypeName(dtype), " [", elements, "]"));
    }
    return fits;
  }

  // Any storage type holds the same bytes, in a column.
  void ReadCodes(int64_t bytes) {
    const absl::StatusOr<ShardedModel::Tensor> tensor = model_.Get(row_.name);
    if (!tensor.ok()) return Fault("the tensor itself, its codes, is missing");
    result_.codes = *tensor;
    const TensorInfo& info = *tensor->info;
    const bool storage = info.dtype == Dtype::kU8 || info.dtype == Dtype::kBF16 ||
                         info.dtype == Dtype::kF16 || info.dtype == Dtype::kF32;
    const bool column = info.shape.size() == 2 && info.shape[1] == 1;
    if (!storage || !column || info.bytes != bytes) {
      Fault(absl::StrCat("its codes are ", info.Describe(), ", allowed U8 [", bytes,
                         ", 1] or the same bytes as a column of BF16, F16 or F32"));
    }
  }

  void CheckCodeBook(const ShardedModel::Tensor& map, std::vector<std::string>* warnings) {
    float values[16];
    std::memcpy(values, map.data(), sizeof(values));
    const std::array<float, 16>& ours = quant::CodeValues(result_.spec.type);
    // By value: writers differ in the sign of FP4's second zero.
    if (std::equal(ours.begin(), ours.end(), values)) return;
    warnings->push_back(absl::StrCat(
        map.file->path(), ": tensor ", map.info->name, " differs from the code book of ",
        quant::QuantTypeName(result_.spec.type), "; as in bitsandbytes, it is not used"));
  }

  const ShardedModel& model_;
  const WeightRow& row_;
  PrequantizedWeight result_;
  std::vector<std::string> faults_;
};

}  // namespace

std::string QuantStateName(const WeightRow& row, QuantType type) {
  return absl::StrCat(row.name, ".quant_state.bitsandbytes__", quant::QuantTypeName(type));
}

bool IsPrequantized(const ShardedModel& model, const WeightRow& row) {
  return !StatesOf(model, row).empty();
}

std::vector<std::string> PrequantizedNames(const WeightRow& row) {
  std::vector<std::string> names;
  for (const char* part : {".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"}) {
    names.push_back(row.name + part);
  }
  for (const QuantType type : kTypes) names.push_back(QuantStateName(row, type));
  return names;
}

absl::StatusOr<PrequantizedWeight> ReadPrequantized(const ShardedModel& model, const WeightRow& row,
                                                    std::vector<std::string>* warnings) {
  return Reader(model, row).Read(warnings);
}

}  // namespace qlora::engine
