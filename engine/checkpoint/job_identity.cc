#include "engine/checkpoint/job_identity.h"

#include <google/protobuf/text_format.h>

#include <algorithm>
#include <limits>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/io/sha256.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

std::string TextOf(const proto::Job& job) {
  std::string text;
  google::protobuf::TextFormat::PrintToString(job, &text);
  return text;
}

// "cpu (avx512, 2 threads)": the number of threads changes nothing.
std::string DeviceLine(const std::string& device) {
  return absl::StrCat("# ", device.substr(0, device.find(',')), "\n");
}

}  // namespace

absl::StatusOr<std::string> HashBase(Env* env, const std::string& config_file,
                                     const std::optional<ShardedModel>& model,
                                     const std::function<void()>& on_part) {
  std::vector<std::string> paths = {config_file};
  if (model) {
    for (const SafetensorsFile& file : model->files()) paths.push_back(file.path());
    std::sort(paths.begin() + 1, paths.end());
  }
  std::string lines;
  for (const std::string& path : paths) {
    absl::StatusOr<std::string> hash = Sha256File(env, path, on_part);
    if (!hash.ok()) return hash.status();
    absl::StrAppend(&lines, BaseName(path), " ", *hash, "\n");
  }
  return Sha256Hex(lines);
}

std::string DecisiveJobText(const proto::Job& job, const std::string& device, int ranks) {
  proto::Job decisive = job;
  decisive.clear_model();
  decisive.clear_output_dir();
  decisive.clear_overwrite_output_dir();
  decisive.clear_num_threads();
  decisive.clear_cpu_isa();
  decisive.clear_device();
  decisive.clear_memory_limit();
  decisive.clear_eval();
  decisive.clear_generate();
  decisive.clear_parallel();
  decisive.clear_drift();
  decisive.clear_merge();
  decisive.clear_gates();
  decisive.clear_economics();
  decisive.clear_plan();
  decisive.clear_sweep();
  decisive.mutable_quantization()->clear_quantize_cache();
  proto::Training* training = decisive.mutable_training();
  // The global batch is what counts, however many ranks share it.
  const int64_t micro_batches = int64_t{training->gradient_accumulation_steps()} * ranks;
  training->set_gradient_accumulation_steps(
      int32_t(std::min<int64_t>(micro_batches, std::numeric_limits<int32_t>::max())));
  training->clear_logging_steps();
  training->clear_eval_steps();
  training->clear_save_steps();
  training->clear_save_total_limit();
  training->clear_load_best_model_at_end();
  training->clear_recompute();
  training->clear_paged_states_budget();
  training->clear_max_consecutive_nonfinite();
  proto::Data* data = decisive.mutable_data();
  data->clear_train_file();
  data->clear_eval_file();
  data->clear_max_eval_samples();
  std::string text = TextOf(decisive) + DeviceLine(device);
  const auto is_power_of_two = [](int64_t n) { return (n & (n - 1)) == 0; };
  if (ranks > 1 && (training->gradient_sum() == proto::GradientSum::SEQUENTIAL ||
                    !is_power_of_two(training->gradient_accumulation_steps()))) {
    absl::StrAppend(&text, "# ", ranks, " ranks: the order of these sums depends on it\n");
  }
  return text;
}

std::string AgreedJobText(const proto::Job& job, const std::string& device) {
  proto::Job agreed = job;
  agreed.clear_num_threads();
  agreed.clear_cpu_isa();
  agreed.clear_device();
  agreed.clear_memory_limit();
  return TextOf(agreed) + DeviceLine(device);
}

absl::Status AgreeOnJob(Ranks* ranks, const std::string& mine) {
  absl::StatusOr<std::vector<std::string>> all = ranks->control().AllGather("the job", mine);
  if (!all.ok()) return all.status();
  for (size_t rank = 1; rank < all->size(); ++rank) {
    if ((*all)[rank] == (*all)[0]) continue;
    return proto::BadJobError(absl::StrCat("ranks disagree on what to train (- rank 0, + rank ",
                                           rank, "):\n", DifferingLines((*all)[0], (*all)[rank]),
                                           "Give all of them the same job, model and data"));
  }
  return absl::OkStatus();
}

std::string DifferingLines(const std::string& before, const std::string& after) {
  const auto lines = [](const std::string& text) -> std::multiset<std::string> {
    return absl::StrSplit(text, '\n', absl::SkipWhitespace());
  };
  const std::multiset<std::string> a = lines(before), b = lines(after);
  std::string text;
  for (const std::string& line : a) {
    if (!b.contains(line)) absl::StrAppend(&text, "  - ", line, "\n");
  }
  for (const std::string& line : b) {
    if (!a.contains(line)) absl::StrAppend(&text, "  + ", line, "\n");
  }
  return text;
}

quant::QuantSpec QuantSpecOf(const proto::Quantization& quantization) {
  quant::QuantSpec spec;
  switch (quantization.bnb_4bit_quant_type()) {
    case proto::QuantType::FP4:
      spec.type = quant::QuantType::kFp4E2M1;
      break;
    case proto::QuantType::FP4_E3M0:
      spec.type = quant::QuantType::kFp4E3M0;
      break;
    case proto::QuantType::INT4:
      spec.type = quant::QuantType::kInt4;
      break;
    default:
      spec.type = quant::QuantType::kNf4;
  }
  if (quantization.has_block_size()) spec.block_size = quantization.block_size();
  if (quantization.has_bnb_4bit_use_double_quant()) {
    spec.double_quant = quantization.bnb_4bit_use_double_quant();
  }
  return spec;
}

}  // namespace qlora::engine
