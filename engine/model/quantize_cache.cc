#include "engine/model/quantize_cache.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/io/atomic_file.h"
#include "engine/io/atomic_folder.h"
#include "engine/io/file_lock.h"
#include "engine/io/model_files.h"
#include "engine/io/sha256.h"
#include "engine/model/load_weights.h"
#include "engine/model/prequantized.h"

namespace qlora::engine {
namespace {

// Raised when what is written for the same base changes.
constexpr int kCacheVersion = 1;
constexpr size_t kNameDigits = 16;

class Cache {
 public:
  Cache(const QuantizeCache& cache, const ShardedModel& model, Execution* execution,
        const SharedReading& reading)
      : cache_(cache),
        model_(model),
        execution_(*execution),
        reading_(reading),
        storage_(execution->plan().run.storage),
        key_(QuantizeCacheKey(cache.base_hash, storage_.options.quant,
                              storage_.spec.kept_in_16_bits)),
        path_(QuantizeCachePath(cache, storage_.options.quant, storage_.spec.kept_in_16_bits)) {}

  absl::Status Load(const Progress& progress, std::vector<std::string>* notes) {
    const absl::StatusOr<bool> present = cache_.env->IsPresent(path_);
    absl::Status status = present.status();
    if (present.ok() && *present) {
      const absl::StatusOr<ShardedModel> cached = Open();
      status = cached.status();
      if (cached.ok()) status = LoadWeights(*cached, &execution_, progress, reading_);
      if (status.ok()) {
        notes->push_back(absl::StrCat("the 4-bit base was loaded from ", path_));
        return status;
      }
      // What other ranks have taken already can't be begun anew, and who asks to stop means it.
      if (cached.ok() && (reading_.is_shared() || absl::IsCancelled(status))) return status;
    }
    if (!status.ok()) {
      notes->push_back(absl::StrCat("the 4-bit base in ", path_, " is not used: ", status.message(),
                                    "; quantizing the model again"));
    }
    if (absl::Status s = LoadWeights(model_, &execution_, progress, reading_); !s.ok()) return s;
    if (!storage_.gathered.empty()) {
      notes->push_back("the 4-bit base is not kept: with parallel.shard_base no rank has it whole");
      return absl::OkStatus();
    }
    const absl::StatusOr<std::unique_ptr<FileLock>> lock = Lock();
    if (absl::IsUnavailable(lock.status())) {
      // It writes the same bytes, and this run has them in memory already: no need to wait.
      notes->push_back(absl::StrCat("the 4-bit base is being written to ", path_, " by ",
                                    lock.status().message(), "; this run leaves that to it"));
      return absl::OkStatus();
    }
    status = Write(/*is_locked=*/lock.ok(), progress);
    if (absl::IsCancelled(status)) return status;
    notes->push_back(status.ok()
                         ? absl::StrCat("the 4-bit base was written to ", path_)
                         : absl::StrCat("the 4-bit base could not be written to ", path_, ": ",
                                        status.message(),
                                        "; this run does without, the next quantizes again"));
    return absl::OkStatus();
  }

 private:
  // The cached base, if it is whole and this run's.
  absl::StatusOr<ShardedModel> Open() {
    const absl::StatusOr<proto::FolderManifest> manifest = VerifyFolder(cache_.env, path_);
    if (!manifest.ok()) return manifest.status();
    if (manifest->job_hash() != key_) {
      return absl::DataLossError(absl::StrCat("it was made for base and quantization ",
                                              manifest->job_hash(), ", needed is ", key_));
    }
    const auto lists = [&](absl::string_view name) {
      return std::any_of(manifest->files().begin(), manifest->files().end(),
                         [&](const auto& file) { return file.name() == name; });
    };
    if (!lists(kModelFile)) {
      return absl::DataLossError("its manifest lists no model.safetensors");
    }
    absl::StatusOr<ShardedModel> cached = ShardedModel::Open(cache_.env, path_);
    if (!cached.ok()) return cached.status();
    ModelSpec spec = storage_.spec;
    std::vector<std::string> warnings;
    if (absl::Status s =
            CheckCheckpoint(*cached, proto::Mode::QLORA, storage_.options.quant, &spec, &warnings);
        !s.ok()) {
      return s;
    }
    for (const WeightSlot& slot : storage_.weights) {
      if (slot.quantized.codes && !IsPrequantized(*cached, slot.row)) {
        return absl::DataLossError(absl::StrCat("tensor ", slot.row.name, " is not quantized"));
      }
    }
    return cached;
  }

  // Of this base: others may be in the making beside it. Unavailable where another process has it;
  // after other errors writing goes on without, and says so if the folder is to blame.
  absl::StatusOr<std::unique_ptr<FileLock>> Lock() {
    Env* env = cache_.env;
    if (absl::Status s = env->CreateFolders(cache_.folder); !s.ok()) return s;
    return FileLock::Take(JoinPath(cache_.folder, absl::StrCat(".", BaseName(path_), ".lock")),
                          absl::StrCat("process ", env->ProcessId(), " on ", env->HostName()));
  }

  absl::Status Write(bool is_locked, const Progress& progress) {
    Env* env = cache_.env;
    const std::string name = BaseName(path_);
    // Without a lock it may be another run's work. What stays costs space, nothing else.
    if (is_locked) CleanTemporariesOf(env, cache_.folder, name).IgnoreError();
    absl::StatusOr<std::unique_ptr<FolderCommit>> commit =
        FolderCommit::Begin(env, cache_.folder, name);
    if (!commit.ok()) return commit.status();
    const FileMaker make = [&](const std::string& file) { return (*commit)->NewFile(file); };
    if (absl::Status s =
            WriteQuantizedFiles(env, make, model_, &execution_, {.progress = progress});
        !s.ok())
      return s;
    return (*commit)->Commit({.step = 0, .world = 1, .job_hash = key_});
  }

  const QuantizeCache& cache_;
  const ShardedModel& model_;
  Execution& execution_;
  const SharedReading& reading_;
  const Storage& storage_;
  const std::string key_;
  const std::string path_;
};

}  // namespace

std::string QuantizeCacheKey(const std::string& base_hash, const quant::QuantSpec& spec,
                             absl::Span<const std::string> kept) {
  std::string text = absl::StrCat("4-bit base ", kCacheVersion, "\n", base_hash, "\n",
                                  quant::QuantTypeName(spec.type), " ", spec.block_size, " ",
                                  spec.double_quant ? "double" : "plain", "\n");
  for (const std::string& module : kept) absl::StrAppend(&text, "16 bits ", module, "\n");
  return Sha256Hex(text);
}

std::string QuantizeCachePath(const QuantizeCache& cache, const quant::QuantSpec& spec,
                              absl::Span<const std::string> kept) {
  return JoinPath(cache.folder,
                  QuantizeCacheKey(cache.base_hash, spec, kept).substr(0, kNameDigits));
}

absl::Status LoadWeightsCached(const QuantizeCache& cache, const ShardedModel& model,
                               Execution* execution, const Progress& progress,
                               std::vector<std::string>* notes, const SharedReading& reading) {
  const std::vector<WeightSlot>& weights = execution->plan().run.storage.weights;
  const bool quantizes = std::any_of(weights.begin(), weights.end(), [&](const WeightSlot& slot) {
    return slot.quantized.codes && !IsPrequantized(model, slot.row);
  });
  if (!quantizes || !reading.reads()) return LoadWeights(model, execution, progress, reading);
  return Cache(cache, model, execution, reading).Load(progress, notes);
}

}  // namespace qlora::engine
