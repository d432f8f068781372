#include "engine/checkpoint/state_file.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "engine/checkpoint/check_finite.h"
#include "engine/input_error.h"
#include "engine/io/safetensors.h"
#include "engine/io/safetensors_writer.h"
#include "engine/model/load_weights.h"
#include "quant/dynamic_map.h"

namespace qlora::engine {
namespace {

using kernels::DType;
using kernels::Tensor;

// Values that are in host memory at a time while a file is written.
constexpr int64_t kChunk = 1 << 20;

const char* SuffixOf(StateField field) {
  switch (field) {
    case StateField::kMaster:
      return "";
    case StateField::kM:
      return ".exp_avg";
    case StateField::kV:
      return ".exp_avg_sq";
    case StateField::kMAbsmax:
      return ".exp_avg.absmax";
    case StateField::kVAbsmax:
      break;
  }
  return ".exp_avg_sq.absmax";
}

// One state of one parameter: a tensor of the file, and a range of the flat space, both in
// elements, or in blocks for the scales.
struct StateTensor {
  TensorSpec spec;
  StateField field;
  int64_t offset, count;
};

// In the file's order.
std::vector<StateTensor> StateTensors(const Storage& storage, int64_t course) {
  std::vector<StateTensor> tensors;
  for (const StateField field : kStateFields) {
    const std::optional<DType> type = storage.TypeOf(field);
    if (!type) continue;
    const bool per_block = IsPerBlock(field);
    const int64_t per_value = per_block ? kernels::kParameterBlock : 1;
    for (const Parameter& p : storage.ParametersOf(course)) {
      const int64_t count = (p.rows * p.cols + per_value - 1) / per_value;
      tensors.push_back(
          {{absl::StrCat(p.name, SuffixOf(field)), *type == DType::kU8 ? Dtype::kU8 : Dtype::kF32,
            per_block ? std::vector<int64_t>{count} : std::vector<int64_t>{p.rows, p.cols}},
           field,
           p.offset / per_value,
           count});
    }
  }
  std::sort(tensors.begin(), tensors.end(),
            [](const StateTensor& a, const StateTensor& b) { return InFileOrder(a.spec, b.spec); });
  return tensors;
}

// Goes through the values of the file in order. Calls `take` with each run of them on rank 0, which
// has them from the rank that they belong to.
class Gatherer {
 public:
  Gatherer(const Storage& storage, const StateReader& read, HostExchange* exchange, int64_t course)
      : storage_(storage), read_(read), exchange_(exchange), course_(course) {}

  // `first`: which of the tensor's values the run begins with.
  using Take = absl::FunctionRef<absl::Status(const StateTensor& tensor, int64_t first,
                                              absl::Span<const uint8_t> bytes)>;
  absl::Status Run(Take take) {
    for (const StateTensor& tensor : StateTensors(storage_, course_)) {
      if (absl::Status s = Gather(tensor, take); !s.ok()) return s;
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Gather(const StateTensor& tensor, Take take) {
    const int64_t unit = IsPerBlock(tensor.field) ? kernels::kParameterBlock : 1;
    const int64_t size = kernels::SizeOf(*storage_.TypeOf(tensor.field));
    const int rank = storage_.options.rank;
    for (int64_t at = tensor.offset; at < tensor.offset + tensor.count;) {
      const int owner = OwnerOf(at * unit);
      const int64_t end = std::min(
          {tensor.offset + tensor.count, at + kChunk, storage_.state_shares[owner + 1] / unit});
      bytes_.resize((end - at) * size);
      if (owner == rank) {
        if (absl::Status s = ReadOwn(tensor.field, at, end - at, size); !s.ok()) return s;
      }
      if (owner != 0 && (rank == 0 || rank == owner)) {
        const int both[] = {owner, 0};
        if (absl::Status s = exchange_->Broadcast(bytes_.data(), int64_t(bytes_.size()), both);
            !s.ok()) {
          return s;
        }
      }
      if (rank == 0) {
        if (absl::Status s = take(tensor, at - tensor.offset, bytes_); !s.ok()) return s;
      }
      at = end;
    }
    return absl::OkStatus();
  }

  // Without shares everything is the own rank's.
  int OwnerOf(int64_t element) const {
    const Shares& shares = storage_.state_shares;
    return int(std::upper_bound(shares.begin(), shares.end(), element) - shares.begin()) - 1;
  }

  absl::Status ReadOwn(StateField field, int64_t offset, int64_t count, int64_t size) {
    for (const StatePart& part : storage_.StateParts(field, offset, count)) {
      if (absl::Status s = read_(part.view, bytes_.data() + part.begin * size, part.view.Extent());
          !s.ok()) {
        return s;
      }
    }
    return absl::OkStatus();
  }

  const Storage& storage_;
  const StateReader& read_;
  HostExchange* const exchange_;  // null: nothing is another rank's
  const int64_t course_;
  std::vector<uint8_t> bytes_;
};

// 8-bit moments of the gaps between parameters, which no checkpoint holds, are the codes of zero as
// they are after any update: code 0 of the signed map would be a moment of -1 times its block's
// scale.
absl::Status ClearMoments(Execution* execution, const Storage& storage, int64_t course) {
  for (const StateWindow& window : storage.windows) {
    if (window.course != course) continue;
    for (const auto& [moments, map] : {std::pair{window.m, &quant::SignedDynamicMap()},
                                       std::pair{window.v, &quant::UnsignedDynamicMap()}}) {
      if (moments.dtype != DType::kU8) continue;
      const std::vector<uint8_t> zeros(std::min(kChunk, moments.Count()),
                                       quant::EncodeDynamic(map->data(), 0.0f));
      for (int64_t at = 0; at < moments.Count(); at += kChunk) {
        const int64_t count = std::min(kChunk, moments.Count() - at);
        const Tensor part = kernels::Slice(moments, 0, 1, at, count);
        if (absl::Status s = execution->Write(part, zeros.data(), count); !s.ok()) return s;
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

int64_t StateFileBytes(const Storage& storage, int64_t course) {
  int64_t bytes = 0;
  for (const StateTensor& tensor : StateTensors(storage, course)) {
    bytes += tensor.count * kernels::SizeOf(*storage.TypeOf(tensor.field));
  }
  return bytes;
}

absl::Status WriteStates(std::unique_ptr<WritableFile> file, const Storage& storage,
                         const StateReader& read, HostExchange* exchange, int64_t course) {
  std::vector<TensorSpec> specs;
  for (const StateTensor& tensor : StateTensors(storage, course)) {
    specs.push_back(tensor.spec);
  }
  absl::StatusOr<SafetensorsWriter> writer =
      SafetensorsWriter::Create(std::move(file), std::move(specs));
  if (!writer.ok()) return writer.status();
  const absl::Status written =
      Gatherer(storage, read, exchange, course)
          .Run([&](const StateTensor& tensor, int64_t first, absl::Span<const uint8_t> bytes) {
            const absl::Status finite =
                CheckFinite(tensor.spec.name, *storage.TypeOf(tensor.field), bytes, first);
            return finite.ok() ? writer->Append(bytes) : finite;
          });
  return written.ok() ? writer->Finish() : written;
}

absl::Status SendStates(Execution* execution, HostExchange* exchange) {
  const StateReader read = ReaderOf(execution);
  return Gatherer(execution->plan().run.storage, read, exchange, 0)
      .Run([](const StateTensor&, int64_t, absl::Span<const uint8_t>) { return absl::OkStatus(); });
}

absl::Status ReadStates(Env* env, const std::string& path, Execution* execution, int64_t course) {
  const Storage& storage = execution->plan().run.storage;
  absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(env, path);
  if (!file.ok()) return AsInputError(file.status());
  const std::vector<StateTensor> tensors = StateTensors(storage, course);
  if (file->tensors().size() != tensors.size()) {
    return proto::BadDataError(absl::StrCat(file->path(), " holds ", file->tensors().size(),
                                            " tensors; this job has ", tensors.size()));
  }
  if (absl::Status s = ClearMoments(execution, storage, course); !s.ok()) return s;
  std::vector<float> values;
  for (const StateTensor& tensor : tensors) {
    absl::StatusOr<const TensorInfo*> info = file->Get(tensor.spec.name);
    if (!info.ok()) return AsInputError(info.status());
    if ((*info)->dtype != tensor.spec.dtype || (*info)->shape != tensor.spec.shape) {
      return proto::BadDataError(absl::StrCat(file->path(), ": tensor ", tensor.spec.name, " is ",
                                              (*info)->Describe(), ", not what this job trains"));
    }
    const uint8_t* const from = file->data(**info);
    if (tensor.field == StateField::kMaster) {
      values.resize(tensor.count);
      std::memcpy(values.data(), from, tensor.count * sizeof(float));
      const int64_t parameter = storage.space.IndexAt(tensor.offset);
      if (absl::Status s = WriteTrained(execution, parameter, values); !s.ok()) return s;
      continue;
    }
    const int64_t size = kernels::SizeOf(*storage.TypeOf(tensor.field));
    for (const StatePart& part : storage.StateParts(tensor.field, tensor.offset, tensor.count)) {
      if (absl::Status s =
              execution->Write(part.view, from + part.begin * size, part.view.Extent());
          !s.ok()) {
        return s;
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace qlora::engine
