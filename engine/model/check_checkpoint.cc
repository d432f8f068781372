#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/model/element_convert.h"
#include "engine/model/load_weights.h"
#include "engine/model/prequantized.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

using kernels::DType;

// Findings shown; a wrong folder has hundreds, all alike.
constexpr size_t kShown = 20;
constexpr size_t kShownExtras = 5;
constexpr int64_t kChunk = 1 << 16;

WeightRow RowOf(const ModelSpec& spec, WeightRole role) {
  const std::vector<WeightRow> rows = WeightRows(spec);
  return *std::find_if(rows.begin(), rows.end(),
                       [&](const WeightRow& row) { return row.role == role; });
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

// Equal as numbers, whatever their types.
bool SameValues(const ShardedModel::Tensor& a, const ShardedModel::Tensor& b) {
  if (a.info->dtype == b.info->dtype) {
    return std::memcmp(a.data(), b.data(), a.info->bytes) == 0;
  }
  const DType types[] = {*FloatType(a.info->dtype), *FloatType(b.info->dtype)};
  const int64_t n = a.info->elements();
  std::vector<float> values[2] = {std::vector<float>(std::min(kChunk, n)),
                                  std::vector<float>(std::min(kChunk, n))};
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t count = std::min(kChunk, n - begin);
    ConvertElements(types[0], a.data() + begin * kernels::SizeOf(types[0]), count, DType::kF32,
                    values[0].data());
    ConvertElements(types[1], b.data() + begin * kernels::SizeOf(types[1]), count, DType::kF32,
                    values[1].data());
    if (std::memcmp(values[0].data(), values[1].data(), count * 4) != 0) return false;
  }
  return true;
}

class Checker {
 public:
  Checker(const ShardedModel& model, proto::Mode::Value mode, const quant::QuantSpec& quant,
          ModelSpec* spec, std::vector<std::string>* warnings)
      : model_(model), mode_(mode), quant_(quant), spec_(*spec), warnings_(*warnings) {}

  absl::Status Check() {
    DecideTying();
    for (const WeightRow& row : WeightRows(spec_)) CheckRow(row);
    WarnOfExtras();
    SettleStoredType();
    return Finish();
  }

 private:
  void Fault(std::string what) { faults_.push_back(std::move(what)); }

  void DecideTying() {
    if (!spec_.tied_embeddings) return;
    ModelSpec untied = spec_;
    untied.tied_embeddings = false;
    const WeightRow head = RowOf(untied, WeightRole::kHead);
    if (!model_.Has(head.name)) return;
    known_.insert(head.name);
    const WeightRow embedding = RowOf(untied, WeightRole::kEmbedding);
    // A head that is faulty is reported as such when its own row is checked.
    if (Fits(embedding) && Fits(head) &&
        SameValues(*model_.Get(head.name), *model_.Get(embedding.name))) {
      return;
    }
    spec_.tied_embeddings = false;
    warnings_.push_back(
        absl::StrCat(model_.Get(head.name)->file->path(), ": tensor ", head.name, " differs from ",
                     embedding.name,
                     " although config.json ties them (tie_word_embeddings): the file's is used"));
  }

  bool Fits(const WeightRow& row) const { return FaultOf(row).empty(); }

  // What is wrong with an unquantized tensor; empty if nothing.
  std::string FaultOf(const WeightRow& row) const {
    const absl::StatusOr<ShardedModel::Tensor> tensor = model_.Get(row.name);
    const std::vector<int64_t> shape = KindOf(row.role) == WeightKind::kMatrix
                                           ? std::vector<int64_t>{row.rows, row.cols}
                                           : std::vector<int64_t>{row.cols};
    if (!tensor.ok()) {
      return absl::StrCat(
          "tensor ", row.name, " ", ShapeText(shape), " is missing",
          row.role == WeightRole::kHead
              ? " (config.json would say tie_word_embeddings: true if the embedding "
                "were the head)"
              : "");
    }
    const bool type_fits = FloatType(tensor->info->dtype).has_value();
    if (type_fits && tensor->info->shape == shape) return "";
    return absl::StrCat(
        BaseName(tensor->file->path()), ": tensor ", row.name, " is ", tensor->info->Describe(),
        ", allowed ", "BF16, F16 or F32 ", ShapeText(shape),
        type_fits || !row.quantizable
            ? ""
            : absl::StrCat(", or 4 bits with a tensor ",
                           QuantStateName(row, quant::QuantType::kNf4), " beside it"));
  }

  void CheckRow(const WeightRow& row) {
    known_.insert(row.name);
    if (!IsPrequantized(model_, row)) {
      std::string fault = FaultOf(row);
      if (!fault.empty()) return Fault(std::move(fault));
      types_.insert(*FloatType(model_.Get(row.name)->info->dtype));
      if (row.quantizable && quantizable_++ == 0) first_quantizable_ = row.module;
      return;
    }
    for (std::string& name : PrequantizedNames(row)) known_.insert(std::move(name));
    if (!row.quantizable) {
      Fault(absl::StrCat("tensor ", row.name, " is stored in 4 bits, which ",
                         row.lora_target ? "quantization.keep_in_16_bits excludes: remove it there"
                                         : "is allowed for the linears of layers only"));
      return;
    }
    ++prequantized_;
    if (first_prequantized_.empty()) first_prequantized_ = row.name;
    const absl::StatusOr<PrequantizedWeight> weight =
        ReadPrequantized(model_, row, &code_book_warnings_);
    if (!weight.ok()) return Fault(std::string(weight.status().message()));
    if (weight->spec == quant_) return;
    auto& [count, first] = other_specs_[QuantizationFields(weight->spec)];
    if (count++ == 0) first = row.name;
  }

  // What the files hold counts, not what config.json says of them: fp32 weights under "float16"
  // would lose values. Of several types the one that holds all.
  void SettleStoredType() {
    if (types_.empty()) return;
    const DType found = types_.size() == 1 ? *types_.begin() : DType::kF32;
    if (found != spec_.stored_dtype) {
      warnings_.push_back(absl::StrCat(model_.folder(), ": weights are stored in ",
                                       kernels::NameOf(found), ", config.json says ",
                                       kernels::NameOf(spec_.stored_dtype), ": taken as stored"));
    }
    spec_.stored_dtype = found;
  }

  void WarnOfExtras() {
    std::vector<std::string> extras = model_.unlisted();
    for (const std::string& name : model_.Names()) {
      // Older Llama checkpoints carry the rotary frequencies; they follow from the config.
      if (absl::EndsWith(name, ".rotary_emb.inv_freq") || known_.contains(name)) continue;
      extras.push_back(name);
    }
    if (extras.empty()) return;
    const size_t shown = std::min(extras.size(), kShownExtras);
    warnings_.push_back(absl::StrCat(
        model_.folder(), ": ", extras.size(), " tensors are not part of a ", spec_.family,
        " model and are not used: ", absl::StrJoin(extras.begin(), extras.begin() + shown, ", "),
        shown < extras.size() ? ", ..." : ""));
  }

  absl::Status Finish() {
    // A writer that has another code book has it for every weight.
    if (!code_book_warnings_.empty()) {
      warnings_.push_back(absl::StrCat(
          code_book_warnings_.front(),
          code_book_warnings_.size() > 1
              ? absl::StrCat(" (and ", code_book_warnings_.size() - 1, " tensors like it)")
              : ""));
    }
    if (prequantized_ > 0 && quantizable_ > 0 && mode_ == proto::Mode::QLORA) {
      warnings_.push_back(absl::StrCat(
          model_.folder(), ": ", quantizable_, " linears are stored in 16 bits beside ",
          prequantized_, " in 4 bits, and are quantized now (the first is ", first_quantizable_,
          "); quantization.keep_in_16_bits leaves them as they are"));
    }
    const bool damaged = !faults_.empty();
    if (mode_ != proto::Mode::QLORA && prequantized_ > 0) {
      Fault(absl::StrCat("mode ", proto::Mode::Value_Name(mode_), " needs 16- or 32-bit weights; ",
                         prequantized_, " are stored in 4 bits (the first is ", first_prequantized_,
                         "): use mode QLORA, or the checkpoint that this one was quantized from"));
    } else if (mode_ == proto::Mode::QLORA) {
      for (const auto& [fields, rows] : other_specs_) {
        Fault(absl::StrCat(rows.first, " weights (the first is ", rows.second, ") are stored with ",
                           fields, ", the job asks for ", QuantizationFields(quant_),
                           ": set the fields as stored, or use the checkpoint that this one was "
                           "quantized from"));
      }
    }
    if (faults_.empty()) return absl::OkStatus();
    const size_t shown = std::min(faults_.size(), kShown);
    const std::string message = absl::StrCat(
        model_.folder(), ": ", faults_.size(), faults_.size() == 1 ? " finding" : " findings",
        "\n  ", absl::StrJoin(faults_.begin(), faults_.begin() + shown, "\n  "),
        shown < faults_.size() ? absl::StrCat("\n  and ", faults_.size() - shown, " more") : "");
    return damaged ? proto::BadDataError(message) : proto::BadJobError(message);
  }

  const ShardedModel& model_;
  const proto::Mode::Value mode_;
  const quant::QuantSpec quant_;
  ModelSpec& spec_;
  std::vector<std::string>& warnings_;
  std::vector<std::string> faults_;
  std::set<std::string> known_;
  std::vector<std::string> code_book_warnings_;
  std::set<DType> types_;                       // of the unquantized tensors
  int64_t prequantized_ = 0, quantizable_ = 0;  // stored in 4 bits, to be quantized
  std::string first_prequantized_, first_quantizable_;
  std::map<std::string, std::pair<int64_t, std::string>> other_specs_;  // fields → count, first
};

}  // namespace

absl::Status CheckCheckpoint(const ShardedModel& model, proto::Mode::Value mode,
                             const quant::QuantSpec& quant, ModelSpec* spec,
                             std::vector<std::string>* warnings) {
  return Checker(model, mode, quant, spec, warnings).Check();
}

}  // namespace qlora::engine
