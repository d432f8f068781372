#include "engine/model/load_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/input_error.h"
#include "engine/lora/initialize.h"
#include "engine/model/element_convert.h"
#include "engine/model/prequantized.h"
#include "engine/model/rope_table.h"
#include "engine/model/unpack_weight.h"
#include "kernels/philox.h"
#include "quant/dynamic_map.h"

namespace qlora::engine {
namespace {

using kernels::DType;
using kernels::Tensor;

// Elements converted at a time on the host; where they are handed from rank to rank, more.
constexpr int64_t kChunk = 1 << 16;
constexpr int64_t kSharedChunk = 1 << 18;

absl::Status NotFinite(const ShardedModel::Tensor& tensor, int64_t element) {
  return proto::BadDataError(
      absl::StrCat(tensor.file->path(), ": tensor ", tensor.info->name,
                   " holds NaN or infinity at element ", element,
                   " (or a value too large for the run's type). The file is damaged or the model "
                   "diverged: fetch it again, or use another one"));
}

class Loader {
 public:
  Loader(const ShardedModel& model, Execution* execution, const SharedReading& reading = {})
      : model_(model),
        execution_(*execution),
        storage_(execution->plan().run.storage),
        reading_(reading) {}

  absl::Status Load(const Progress& progress) {
    if (absl::Status s = FillTables(&execution_); !s.ok()) return s;
    int64_t done = 0, total = 0;
    for (const WeightSlot& slot : storage_.weights) total += slot.row.Count();
    for (const WeightSlot& slot : storage_.weights) {
      if (absl::Status s = LoadOne(slot); !s.ok()) return s;
      ReleaseSources(slot.row.name);
      done += slot.row.Count();
      if (absl::Status s = Tell(progress, double(done) / double(total)); !s.ok()) return s;
    }
    return absl::OkStatus();
  }

  absl::Status LoadOne(const WeightSlot& slot) {
    if (slot.quantized.codes) return LoadQuantized(slot);
    const absl::StatusOr<ShardedModel::Tensor> tensor = model_.Get(slot.row.name);
    if (!tensor.ok()) return AsInputError(tensor.status());
    return Copy(*tensor, PlacesOf(slot));
  }

 private:
  // What was read of the checkpoint need not stay in memory: the weight, and in 4-bit layout the
  // tensors named after it.
  void ReleaseSources(const std::string& name) const {
    for (const char* suffix : {"", ".absmax"}) {
      const absl::StatusOr<ShardedModel::Tensor> tensor = model_.Get(name + suffix);
      if (tensor.ok()) tensor->file->ReleasePages(tensor->bytes());
    }
  }

  // Where the elements of a weight that is not quantized go.
  std::vector<StatePart> PlacesOf(const WeightSlot& slot) const {
    if (slot.group >= 0) return {storage_.gathered[slot.group].Own(slot.frozen)};
    if (slot.parameter < 0) return {{0, slot.frozen}};
    std::vector<StatePart> places;
    if (!storage_.master) {
      const int64_t offset = storage_.space.parameters()[slot.parameter].offset;
      places = storage_.StateParts(StateField::kMaster, offset, slot.row.Count());
    }
    for (const Tensor& flat : {storage_.master, storage_.compute}) {
      if (flat) places.push_back({0, storage_.space.View(slot.parameter, flat)});
    }
    return places;
  }

  // Fills all places, chunk by chunk, with the tensor's elements.
  absl::Status Copy(const ShardedModel::Tensor& tensor, const std::vector<StatePart>& places) {
    const DType type = *FloatType(tensor.info->dtype);
    const int64_t count = tensor.info->elements();
    const int64_t step = reading_.is_shared() ? kSharedChunk : kChunk;
    std::vector<uint8_t> converted;
    for (int64_t begin = 0; begin < count; begin += step) {
      const int64_t end = std::min(begin + step, count);
      const absl::StatusOr<const uint8_t*> source = Source(tensor, type, begin, end);
      if (!source.ok()) return source.status();
      for (const StatePart& place : places) {
        const int64_t from = std::max(begin, place.begin),
                      to = std::min(end, place.begin + place.view.Count());
        if (from >= to) continue;
        const int64_t size = kernels::SizeOf(place.view.dtype);
        converted.resize((to - from) * size);
        const int64_t bad = ConvertElements(type, *source + (from - begin) * kernels::SizeOf(type),
                                            to - from, place.view.dtype, converted.data());
        if (bad >= 0) return NotFinite(tensor, from + bad);
        Tensor part = place.view;
        part.data = static_cast<uint8_t*>(part.data) + (from - place.begin) * size;
        if (absl::Status s = execution_.Write(part, converted.data(), int64_t(converted.size()));
            !s.ok()) {
          return s;
        }
      }
      tensor.file->ReleasePages(tensor.bytes().subspan(begin * kernels::SizeOf(type),
                                                       (end - begin) * kernels::SizeOf(type)));
    }
    return absl::OkStatus();
  }

  // Elements [begin, end) as they are stored; good until the next call.
  absl::StatusOr<const uint8_t*> Source(const ShardedModel::Tensor& tensor, DType type,
                                        int64_t begin, int64_t end) {
    const int64_t at = begin * kernels::SizeOf(type), bytes = end * kernels::SizeOf(type) - at;
    if (!reading_.is_shared()) return tensor.data() + at;
    source_.resize(bytes);
    if (reading_.reads()) std::memcpy(source_.data(), tensor.data() + at, bytes);
    if (absl::Status s = reading_.exchange->Broadcast(source_.data(), bytes, reading_.ranks);
        !s.ok()) {
      return s;
    }
    return source_.data();
  }

  // Made by the rank that reads; the others take what it made.
  absl::Status LoadQuantized(const WeightSlot& slot) {
    uint8_t* scratch = static_cast<uint8_t*>(execution_.LoadingScratch());
    const kernels::QuantizedOutput out = OutputOf(slot, scratch);
    if (slot.group >= 0) scratch += QuantizedBytes(slot.row, slot.base.quantized.spec);
    if (reading_.reads()) {
      absl::Status status = IsPrequantized(model_, slot.row)
                                ? LoadPrequantized(model_, slot, out, scratch, &execution_)
                                : Quantize(slot, out, scratch);
      if (!status.ok()) return status;
    }
    if (reading_.is_shared()) {
      Comm& comm = reading_.exchange->comm();
      for (const Tensor& part : {out.codes, out.absmax, out.nested_absmax, out.offset}) {
        if (!part) continue;
        if (absl::Status s = comm.StartBroadcast(part.data, part.Extent(), reading_.ranks);
            !s.ok()) {
          return s;
        }
      }
      if (absl::Status s = comm.Finish(); !s.ok()) return s;
    }
    return slot.group < 0 ? absl::OkStatus() : KeepShare(slot, out);
  }

  // Real addresses of a slot's parts: in the scratch where the weight is then shared out over
  // ranks.
  kernels::QuantizedOutput OutputOf(const WeightSlot& slot, uint8_t* scratch) const {
    kernels::QuantizedOutput out = slot.quantized;
    const int64_t begin = Program::OffsetOf(slot.quantized.codes.data);
    for (Tensor* part : {&out.codes, &out.absmax, &out.nested_absmax, &out.offset}) {
      if (!*part) continue;
      if (slot.group < 0) {
        *part = execution_.Bind(*part);
      } else {
        part->data = scratch + (Program::OffsetOf(part->data) - begin);
      }
    }
    return out;
  }

  absl::Status KeepShare(const WeightSlot& slot, const kernels::QuantizedOutput& out) {
    const GatheredGroup& group = storage_.gathered[slot.group];
    kernels::Device& device = execution_.device();
    if (absl::Status s = device.Synchronize(); !s.ok()) return s;
    std::vector<uint8_t> bytes;
    const Tensor parts[] = {slot.quantized.codes, slot.quantized.absmax,
                            slot.quantized.nested_absmax, slot.quantized.offset};
    const Tensor made[] = {out.codes, out.absmax, out.nested_absmax, out.offset};
    for (size_t i = 0; i < std::size(parts); ++i) {
      if (!parts[i]) continue;
      const StatePart own = group.Own(parts[i]);
      const int64_t size = kernels::SizeOf(own.view.dtype);
      for (int64_t at = 0; at < own.view.Count(); at += kSharedChunk) {
        const int64_t count = std::min(kSharedChunk, own.view.Count() - at);
        bytes.resize(count * size);
        const uint8_t* const from =
            static_cast<const uint8_t*>(made[i].data) + (own.begin + at) * size;
        absl::Status status = device.CopyOut(bytes.data(), from, int64_t(bytes.size()));
        if (!status.ok()) return status;
        status = execution_.Write(kernels::Slice(own.view, 0, 1, at, count), bytes.data(),
                                  int64_t(bytes.size()));
        if (!status.ok()) return status;
      }
    }
    return absl::OkStatus();
  }

  // The mapped bytes are read in place where the device is the host and they are aligned; else they
  // pass through staging.
  absl::Status Quantize(const WeightSlot& slot, const kernels::QuantizedOutput& out,
                        uint8_t* scratch) {
    const absl::StatusOr<ShardedModel::Tensor> found = model_.Get(slot.row.name);
    if (!found.ok()) return AsInputError(found.status());
    const ShardedModel::Tensor& tensor = *found;
    const DType type = *FloatType(tensor.info->dtype);
    kernels::Quantize op = QuantizeOp(slot, type);
    op.out = out;
    const int64_t workspace = execution_.device().WorkspaceBytes(op);
    op.nonfinite.data = scratch;
    op.workspace = {scratch + kernels::kBufferAlignment, DType::kU8, 1, workspace, workspace};
    if (NeedsStaging(tensor, execution_.device())) {
      uint8_t* staging = scratch + kernels::kBufferAlignment + workspace;
      if (absl::Status s = execution_.device().CopyIn(staging, tensor.data(), tensor.info->bytes);
          !s.ok()) {
        return s;
      }
      op.w.data = staging;
    } else {
      op.w.data = tensor.data();
    }
    if (absl::Status s = execution_.RunOnce({op}); !s.ok()) return s;
    int32_t nonfinite = 0;
    if (absl::Status s = execution_.device().CopyOut(&nonfinite, op.nonfinite.data, 4); !s.ok()) {
      return s;
    }
    if (nonfinite == 0) return absl::OkStatus();
    std::vector<float> chunk(kChunk);
    for (int64_t begin = 0; begin < slot.row.Count(); begin += kChunk) {
      const int64_t bad =
          ConvertElements(type, tensor.data() + begin * kernels::SizeOf(type),
                          std::min(kChunk, slot.row.Count() - begin), DType::kF32, chunk.data());
      if (bad >= 0) return NotFinite(tensor, begin + bad);
    }
    return absl::InternalError(absl::StrCat("tensor ", slot.row.name, ": the device found ",
                                            nonfinite,
                                            " elements that are not finite, the host none"));
  }

 public:
  static bool NeedsStaging(const ShardedModel::Tensor& tensor, const kernels::Device& device) {
    return !device.info().is_host || !tensor.file->IsAligned(*tensor.info, 4);
  }
  static kernels::Quantize QuantizeOp(const WeightSlot& slot, DType type) {
    return {.w = {nullptr, type, slot.row.rows, slot.row.cols, slot.row.cols},
            .spec = slot.base.quantized.spec,
            .out = slot.quantized,
            .nonfinite = {nullptr, DType::kI32, 1, 1, 1},
            .workspace = {}};
  }

 private:
  const ShardedModel& model_;
  Execution& execution_;
  const Storage& storage_;
  const SharedReading reading_;
  std::vector<uint8_t> source_;  // a chunk that is handed on
};

absl::Status WriteFloats(Execution* execution, Tensor view, absl::Span<const float> values) {
  return execution->Write(view, values.data(), int64_t(values.size()) * 4);
}

// N(0, deviation) by Box and Muller's method over counted bits; one Philox call gives four numbers.
void FillNormal(uint64_t seed, uint64_t key, float deviation, absl::Span<float> values) {
  constexpr uint32_t kStream = 0x696e6974;  // apart from every other use of the seed
  for (size_t g = 0; g * 4 < values.size(); ++g) {
    const std::array<uint32_t, 4> bits = kernels::Philox(
        {uint32_t(g), uint32_t(uint64_t(g) >> 32), uint32_t(key), uint32_t(key >> 32)},
        {uint32_t(seed), uint32_t(seed >> 32) ^ kStream});
    for (int pair = 0; pair < 2; ++pair) {
      const double u = (double(bits[2 * pair]) + 0.5) / 4294967296.0;
      const double angle = 2 * std::numbers::pi * (double(bits[2 * pair + 1]) / 4294967296.0);
      const double radius = deviation * std::sqrt(-2 * std::log(u));
      const double two[2] = {radius * std::cos(angle), radius * std::sin(angle)};
      for (int i = 0; i < 2; ++i) {
        const size_t at = g * 4 + 2 * pair + i;
        if (at < values.size()) values[at] = float(two[i]);
      }
    }
  }
}

}  // namespace

int64_t LoadingBytes(const ShardedModel* model, const ModelSpec& spec,
                     const StorageOptions& options, const kernels::Device& device,
                     bool writes_cache) {
  if (options.mode != proto::Mode::QLORA) return 0;
  int64_t most = 0;
  for (WeightRow& row : WeightRows(spec)) {
    if (!row.quantizable) continue;
    if (writes_cache) most = std::max(most, UnpackWeightBytes(row, options.quant));
    // Made in the scratch before each rank takes its share.
    const int64_t made = options.shard_base ? QuantizedBytes(row, options.quant) : 0;
    kernels::DType dtype = kernels::DType::kBf16;
    if (model != nullptr) {
      if (IsPrequantized(*model, row)) {
        most = std::max(most, made + LoadPrequantizedBytes(*model, row, options.quant, device));
        continue;
      }
      const absl::StatusOr<ShardedModel::Tensor> tensor = model->Get(row.name);
      if (!tensor.ok()) continue;  // CheckCheckpoint has said so
      dtype = *FloatType(tensor->info->dtype);
    }
    const int64_t tensor_bytes = row.rows * row.cols * kernels::SizeOf(dtype);
    WeightSlot slot;
    slot.base.quantized.spec = options.quant;
    slot.row = std::move(row);
    const kernels::Quantize op = Loader::QuantizeOp(slot, dtype);
    // Read in place or through staging, the tensor itself is in memory while it is quantized.
    most =
        std::max(most, made + kernels::kBufferAlignment + device.WorkspaceBytes(op) + tensor_bytes);
  }
  return most;
}

absl::Status LoadWeights(const ShardedModel& model, Execution* execution, const Progress& progress,
                         const SharedReading& reading) {
  return Loader(model, execution, reading).Load(progress);
}

absl::Status LoadWeight(const ShardedModel& model, const WeightSlot& slot, Execution* execution) {
  return Loader(model, execution).LoadOne(slot);
}

absl::Status FillTables(Execution* execution) {
  const Storage& storage = execution->plan().run.storage;
  if (absl::Status s = WriteFloats(execution, storage.dynamic_map, quant::SignedDynamicMap());
      !s.ok()) {
    return s;
  }
  std::vector<float> cos(storage.rope_cos.Count()), sin(storage.rope_sin.Count());
  FillRopeTable(storage.spec.rope, storage.rope_cos.rows, absl::MakeSpan(cos), absl::MakeSpan(sin));
  if (absl::Status s = WriteFloats(execution, storage.rope_cos, cos); !s.ok()) return s;
  if (absl::Status s = WriteFloats(execution, storage.rope_sin, sin); !s.ok()) return s;
  if (!storage.segments) return absl::OkStatus();
  const std::vector<kernels::ParameterSegment> segments = storage.space.Segments();
  return execution->Write(storage.segments, segments.data(),
                          int64_t(segments.size() * sizeof(kernels::ParameterSegment)));
}

absl::Status WriteTrained(Execution* execution, int64_t parameter, absl::Span<const float> values) {
  static_assert(kChunk % kernels::kParameterBlock == 0);
  const Storage& storage = execution->plan().run.storage;
  const int64_t offset = storage.space.parameters()[parameter].offset;
  std::vector<float> chunk;
  std::vector<uint16_t> rounded;
  for (int64_t begin = 0; begin < int64_t(values.size()); begin += kChunk) {
    const absl::Span<const float> given = values.subspan(begin, kChunk);
    chunk.assign(given.begin(), given.end());
    const int64_t first = offset + begin;
    const int64_t count = kernels::AlignUp(int64_t(given.size()), kernels::kParameterBlock);
    chunk.resize(count);
    // The windows' masters are parts of this one where it is there.
    std::vector<StatePart> parts;
    if (storage.master) {
      parts = {{0, kernels::Slice(storage.master, 0, 1, first, count)}};
    } else {
      parts = storage.StateParts(StateField::kMaster, first, count);
    }
    for (const StatePart& part : parts) {
      if (absl::Status s = execution->Write(part.view, &chunk[part.begin], part.view.Extent());
          !s.ok()) {
        return s;
      }
    }
    if (!storage.compute) continue;
    rounded.resize(count);
    ConvertElements(DType::kF32, reinterpret_cast<const uint8_t*>(chunk.data()), count,
                    DType::kBf16, rounded.data());
    if (absl::Status s = execution->Write(kernels::Slice(storage.compute, 0, 1, first, count),
                                          rounded.data(), count * 2);
        !s.ok()) {
      return s;
    }
  }
  return absl::OkStatus();
}

int64_t WriteTrainedBytes(const Storage& storage) {
  int64_t most = 0;
  for (const Parameter& parameter : storage.space.parameters()) {
    most = std::max(most, parameter.rows * parameter.cols);
  }
  return (most + std::min(most, kChunk)) * 4 + std::min(most, kChunk) * 2;
}

absl::Status InitializeWeights(uint64_t seed, Execution* execution) {
  if (absl::Status s = FillTables(execution); !s.ok()) return s;
  const Storage& storage = execution->plan().run.storage;
  std::vector<float> values;
  for (const WeightSlot& slot : storage.weights) {
    values.assign(slot.row.Count(), 0.0f);
    const WeightKind kind = KindOf(slot.row.role);
    if (kind == WeightKind::kNorm) {
      std::fill(values.begin(), values.end(), 1.0f - storage.spec.norm_offset);
    } else if (kind == WeightKind::kMatrix) {
      FillNormal(seed, TensorKey(slot.row.name), storage.spec.initializer_range,
                 absl::MakeSpan(values));
    }
    if (absl::Status s = WriteTrained(execution, slot.parameter, values); !s.ok()) return s;
  }
  return absl::OkStatus();
}

}  // namespace qlora::engine
