#include "engine/checkpoint/checkpoint.h"

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/checkpoint/check_finite.h"
#include "engine/checkpoint/result_sums.h"
#include "engine/checkpoint/state_file.h"
#include "engine/input_error.h"
#include "engine/io/atomic_file.h"
#include "engine/io/json_file.h"
#include "engine/io/model_files.h"
#include "engine/io/safetensors_writer.h"
#include "engine/lora/saved_adapter.h"
#include "engine/model/element_convert.h"
#include "engine/model/load_weights.h"

namespace qlora::engine {
namespace {

using kernels::DType;
using kernels::Tensor;

constexpr char kOptimizerFile[] = "optimizer.safetensors";
constexpr char kRunStateFile[] = "run_state.pb";
constexpr char kTrainerStateFile[] = "trainer_state.json";
constexpr int64_t kMaxSmallFile = int64_t{256} << 20;

Dtype FileType(DType type) {
  switch (type) {
    case DType::kBf16:
      return Dtype::kBF16;
    case DType::kF16:
      return Dtype::kF16;
    case DType::kU8:
      return Dtype::kU8;
    default:
      return Dtype::kF32;
  }
}

// A tensor of a file, and where its values lie in the run's memory.
struct NamedView {
  TensorSpec spec;
  Tensor view;
};

constexpr int64_t kPieceBytes = 1 << 20;

// Streams views into a safetensors file.
absl::Status WriteViews(const FileMaker& make, const char* name, std::vector<NamedView> tensors,
                        const StateReader& read) {
  std::sort(tensors.begin(), tensors.end(),
            [](const NamedView& a, const NamedView& b) { return InFileOrder(a.spec, b.spec); });
  std::vector<TensorSpec> specs;
  for (const NamedView& tensor : tensors) specs.push_back(tensor.spec);
  absl::StatusOr<std::unique_ptr<WritableFile>> file = make(name);
  if (!file.ok()) return file.status();
  absl::StatusOr<SafetensorsWriter> writer = SafetensorsWriter::Create(*std::move(file), specs);
  if (!writer.ok()) return writer.status();
  std::vector<uint8_t> bytes;
  for (const NamedView& tensor : tensors) {
    // Some rows at a time: a copy of an embedding, or of an adapter, would be memory that no plan
    // has.
    const Tensor& view = tensor.view;
    const int64_t step = std::max<int64_t>(1, kPieceBytes / (view.pitch * SizeOf(view.dtype)));
    for (int64_t row = 0; row < view.rows; row += step) {
      const Tensor part = kernels::SliceRows(view, row, std::min(step, view.rows - row));
      bytes.resize(part.Extent());
      if (absl::Status s = read(part, bytes.data(), int64_t(bytes.size())); !s.ok()) return s;
      if (absl::Status s = CheckFinite(tensor.spec.name, view.dtype, bytes, row * view.cols);
          !s.ok()) {
        return s;
      }
      if (absl::Status s = writer->Append(bytes); !s.ok()) return s;
    }
  }
  return writer->Finish();
}

// A and B of each module, under PEFT's names.
std::vector<NamedView> AdapterViews(const Storage& storage, int64_t course) {
  std::vector<NamedView> tensors;
  const CourseRange& range = storage.courses[course];
  for (int64_t i = range.first_parameter; i < range.end_parameter; ++i) {
    const Parameter& p = storage.space.parameters()[i];
    const Tensor view = storage.ComputeView(i);
    tensors.push_back({{AdapterTensorName(p.name), FileType(view.dtype), {p.rows, p.cols}}, view});
  }
  return tensors;
}

std::vector<NamedView> ModelViews(const Storage& storage) {
  std::vector<NamedView> tensors;
  for (const WeightSlot& slot : storage.weights) {
    const Tensor view = storage.ComputeView(slot.parameter);
    const bool is_vector = slot.row.rows == 1;
    tensors.push_back({{slot.row.name, FileType(view.dtype),
                        is_vector ? std::vector<int64_t>{slot.row.cols}
                                  : std::vector<int64_t>{slot.row.rows, slot.row.cols}},
                       view});
  }
  return tensors;
}

// The model's config.json, which says the type that the weights now have.
absl::Status WriteConfig(Env* env, const std::string& from, const FileMaker& make,
                         const Storage& storage) {
  absl::StatusOr<nlohmann::json> config = ReadJsonFile(env, from);
  if (!config.ok()) return AsInputError(config.status());
  const bool narrow = storage.ComputeView(storage.weights.front().parameter).dtype == DType::kBf16;
  const char* const type = narrow ? "bfloat16" : "float32";
  // Transformers 5 writes dtype and reads both.
  if (config->contains("dtype")) (*config)["dtype"] = type;
  if (config->contains("torch_dtype") || !config->contains("dtype")) {
    (*config)["torch_dtype"] = type;
  }
  return WriteTextFile(make, kConfigFile, config->dump(2) + "\n");
}

// What is for the user: the adapter or the model, tokenizer, trainer_state.json.
absl::Status WriteResult(Env* env, const FileMaker& make, const Storage& storage,
                         const StateReader& read, const OutputFiles& files,
                         const proto::RunState& state, int64_t course) {
  const bool full = storage.options.mode == proto::Mode::FULL;
  absl::Status s = full ? WriteViews(make, kModelFile, ModelViews(storage), read)
                        : WriteViews(make, kAdapterModelFile, AdapterViews(storage, course), read);
  if (!s.ok()) return s;
  s = full ? WriteConfig(env, files.config_file, make, storage)
           : WriteAdapterConfig(make, files.adapter);
  if (!s.ok()) return s;
  if (files.residual_note) {
    if (s = WriteResidualNote(make, *files.residual_note); !s.ok()) return s;
  }
  if (s = CopyTokenizerFiles(env, files.tokenizer_folder, make); !s.ok()) return s;
  return WriteTextFile(make, kTrainerStateFile, TrainerStateJson(files.trainer, state));
}

}  // namespace

absl::Status SaveCheckpoint(Env* env, const std::string& output_dir, Execution* execution,
                            const OutputFiles& files, const proto::RunState& state,
                            HostExchange* exchange, int64_t course) {
  return SaveCheckpoint(env, output_dir, execution->plan().run.storage, ReaderOf(execution), files,
                        state, exchange, course);
}

absl::Status SaveCheckpoint(Env* env, const std::string& output_dir, const Storage& storage,
                            const StateReader& read, const OutputFiles& files,
                            const proto::RunState& state, HostExchange* exchange, int64_t course) {
  absl::StatusOr<std::unique_ptr<FolderCommit>> commit =
      FolderCommit::Begin(env, output_dir, CheckpointName(state.step()));
  if (!commit.ok()) return commit.status();
  const FileMaker make = [&](const std::string& name) { return (*commit)->NewFile(name); };
  if (absl::Status s = WriteResult(env, make, storage, read, files, state, course); !s.ok()) {
    return s;
  }
  absl::StatusOr<std::unique_ptr<WritableFile>> optimizer = (*commit)->NewFile(kOptimizerFile);
  if (!optimizer.ok()) return optimizer.status();
  if (absl::Status s = WriteStates(*std::move(optimizer), storage, read, exchange, course);
      !s.ok()) {
    return s;
  }
  if (absl::Status s = (*commit)->AddFile(kRunStateFile, state.SerializeAsString()); !s.ok())
    return s;
  return (*commit)->Commit(
      {.step = state.step(), .world = storage.options.ranks, .job_hash = state.job_hash()});
}

absl::StatusOr<proto::RunState> LoadCheckpoint(Env* env, const std::string& folder,
                                               Execution* execution, int64_t course) {
  if (absl::Status s = ReadStates(env, JoinPath(folder, kOptimizerFile), execution, course);
      !s.ok()) {
    return s;
  }
  return ReadRunState(env, folder);
}

absl::StatusOr<proto::RunState> ReadRunState(Env* env, const std::string& folder) {
  absl::StatusOr<std::string> text = env->ReadFile(JoinPath(folder, kRunStateFile), kMaxSmallFile);
  if (!text.ok()) return AsInputError(text.status());
  proto::RunState state;
  if (!state.ParseFromString(*text)) {
    return proto::BadDataError(
        absl::StrCat(JoinPath(folder, kRunStateFile), " is not a run state"));
  }
  return state;
}

absl::Status WriteFinalOutput(Env* env, const std::string& folder, Execution* execution,
                              const OutputFiles& files, const proto::RunState& state,
                              int64_t course) {
  const FileMaker make = [&](const std::string& name) {
    return NewAtomicFile(env, JoinPath(folder, name));
  };
  const Storage& storage = execution->plan().run.storage;
  if (absl::Status s = WriteResult(env, make, storage, ReaderOf(execution), files, state, course);
      !s.ok()) {
    return s;
  }
  const bool full = storage.options.mode == proto::Mode::FULL;
  return full ? WriteResultSums(env, folder, {kModelFile, kConfigFile})
              : WriteResultSums(env, folder, {kAdapterModelFile, kAdapterConfigFile});
}

absl::Status LoadAdapter(Env* env, const std::string& folder, Execution* execution,
                         int64_t course) {
  const Storage& storage = execution->plan().run.storage;
  const std::vector<AdaptedModule>& modules = storage.options.lora[course].modules;
  absl::StatusOr<LoadedAdapter> loaded = ReadAdapterOf(env, folder, modules);
  if (!loaded.ok()) return AsInputError(loaded.status());
  std::vector<float> values;
  for (size_t i = 0; i < modules.size(); ++i) {
    if (loaded->adapter.config.r != modules[i].rank) {
      return proto::BadDataError(absl::StrCat(folder, ": the adapter has rank ",
                                              loaded->adapter.config.r, "; this job has ",
                                              modules[i].rank));
    }
    const AdapterModule& module = loaded->adapter.modules[i];
    const AdapterSlot& slot = storage.adapters[course][i];
    for (const auto& [bytes, parameter] :
         {std::pair{module.a, slot.a_parameter}, std::pair{module.b, slot.b_parameter}}) {
      const Parameter& p = storage.space.parameters()[parameter];
      values.resize(p.rows * p.cols);
      const int64_t bad = ConvertElements(*FloatType(module.dtype), bytes.data(), p.rows * p.cols,
                                          DType::kF32, values.data());
      if (bad >= 0) {
        return proto::BadDataError(
            absl::StrCat(folder, ": tensor ", p.name, " holds NaN or infinity at element ", bad));
      }
      if (absl::Status s = WriteTrained(execution, parameter, values); !s.ok()) return s;
    }
  }
  return absl::OkStatus();
}

}  // namespace qlora::engine
