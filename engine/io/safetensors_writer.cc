#include "engine/io/safetensors_writer.h"

#include <algorithm>
#include <numeric>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/io/atomic_file.h"
#include "engine/io/safetensors.h"
#include "engine/io/utf8.h"

namespace qlora::engine {
namespace {

// As serde_json writes a string: only quote, backslash and control characters are escaped.
std::string JsonString(absl::string_view text) {
  std::string out = "\"";
  for (char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          absl::StrAppendFormat(&out, "\\u%04x", c);
        } else {
          out.push_back(c);
        }
    }
  }
  out.push_back('"');
  return out;
}

// What our own reader takes.
bool IsTensorName(absl::string_view name) {
  const auto is_control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; };
  return !name.empty() && name != "__metadata__" &&
         std::none_of(name.begin(), name.end(), is_control) &&
         FirstInvalidUtf8(name) == absl::string_view::npos;
}

std::string LittleEndian64(uint64_t value) {
  std::string out;
  for (int i = 0; i < 8; ++i) out.push_back(static_cast<char>(value >> (8 * i)));
  return out;
}

}  // namespace

bool InFileOrder(const TensorSpec& a, const TensorSpec& b) {
  if (a.dtype != b.dtype) return a.dtype > b.dtype;
  return a.name < b.name;
}

absl::StatusOr<int64_t> TensorBytes(Dtype dtype, absl::Span<const int64_t> shape,
                                    absl::string_view name) {
  const auto fail = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", name, ": ", DtypeName(dtype), " [",
                                                   absl::StrJoin(shape, ", "), "]: ", what));
  };
  int64_t bits = DtypeBits(dtype);
  for (int64_t extent : shape) {
    if (extent < 0) return fail("negative extent");
    // As in the reference reader, an overflow counts even where a later extent is 0.
    if (__builtin_mul_overflow(bits, extent, &bits)) return fail("size beyond 63 bits");
  }
  if (bits % 8 != 0) return fail("packed elements don't fill whole bytes");
  return bits / 8;
}

absl::StatusOr<SafetensorsWriter> SafetensorsWriter::Create(
    std::unique_ptr<WritableFile> file, std::vector<TensorSpec> specs,
    const std::map<std::string, std::string>& metadata, TensorOrder order) {
  SafetensorsWriter writer;
  if (order == TensorOrder::kFormat) std::sort(specs.begin(), specs.end(), InFileOrder);
  std::vector<std::string> entries;
  if (!metadata.empty()) {
    entries.push_back(absl::StrCat("\"__metadata__\":{",
                                   absl::StrJoin(metadata, ",",
                                                 [](std::string* out, const auto& entry) {
                                                   absl::StrAppend(out, JsonString(entry.first),
                                                                   ":", JsonString(entry.second));
                                                 }),
                                   "}"));
  }
  std::vector<absl::string_view> names;
  for (const TensorSpec& spec : specs) {
    if (!IsTensorName(spec.name)) {
      return absl::InvalidArgumentError(
          absl::StrCat("a tensor can't be named \"", spec.name, "\" in a safetensors file"));
    }
    auto bytes = TensorBytes(spec.dtype, spec.shape, spec.name);
    if (!bytes.ok()) return bytes.status();
    const int64_t begin = writer.data_bytes_;
    if (__builtin_add_overflow(writer.data_bytes_, *bytes, &writer.data_bytes_)) {
      return absl::InvalidArgumentError("a safetensors file beyond 63 bits of size");
    }
    entries.push_back(absl::StrCat(JsonString(spec.name), ":{\"dtype\":\"", DtypeName(spec.dtype),
                                   "\",\"shape\":[", absl::StrJoin(spec.shape, ","),
                                   "],\"data_offsets\":[", begin, ",", writer.data_bytes_, "]}"));
    writer.ends_.push_back(writer.data_bytes_);
    names.push_back(spec.name);
  }
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", *twice, " would be written twice into one safetensors file"));
  }
  std::string header = absl::StrCat("{", absl::StrJoin(entries, ","), "}");
  header.resize((header.size() + 7) / 8 * 8, ' ');
  if (static_cast<int64_t>(header.size()) > kMaxSafetensorsHeader) {
    return absl::InvalidArgumentError(absl::StrCat("a safetensors header of ", header.size(),
                                                   " bytes: no reader takes more than ",
                                                   kMaxSafetensorsHeader));
  }
  writer.header_bytes_ = 8 + static_cast<int64_t>(header.size());
  writer.specs_ = std::move(specs);
  writer.file_ = std::move(file);
  absl::Status status = writer.file_->Append(absl::StrCat(LittleEndian64(header.size()), header));
  if (!status.ok()) return status;
  return writer;
}

absl::Status SafetensorsWriter::Append(absl::Span<const uint8_t> bytes) {
  if (static_cast<int64_t>(bytes.size()) > data_bytes_ - written_) {
    return absl::FailedPreconditionError(
        absl::StrCat("more data than the ", data_bytes_, " bytes that the header announced"));
  }
  written_ += static_cast<int64_t>(bytes.size());
  return file_->Append(bytes);
}

absl::Status SafetensorsWriter::Finish() {
  if (written_ != data_bytes_) {
    const size_t tensor =
        static_cast<size_t>(std::upper_bound(ends_.begin(), ends_.end(), written_) - ends_.begin());
    return absl::FailedPreconditionError(absl::StrCat("data of tensor ", specs_[tensor].name,
                                                      " is missing: ", written_, " of ",
                                                      data_bytes_, " bytes were written"));
  }
  if (absl::Status status = file_->Sync(); !status.ok()) return status;
  return file_->Close();
}

absl::Status WriteSafetensors(std::unique_ptr<WritableFile> file, std::vector<TensorData> tensors,
                              const std::map<std::string, std::string>& metadata) {
  std::sort(tensors.begin(), tensors.end(),
            [](const TensorData& a, const TensorData& b) { return InFileOrder(a.spec, b.spec); });
  std::vector<TensorSpec> specs;
  for (const TensorData& tensor : tensors) {
    auto bytes = TensorBytes(tensor.spec.dtype, tensor.spec.shape, tensor.spec.name);
    if (!bytes.ok()) return bytes.status();
    if (*bytes != static_cast<int64_t>(tensor.bytes.size())) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", tensor.spec.name, " needs ", *bytes,
                                                     " bytes, ", tensor.bytes.size(),
                                                     " were given"));
    }
    specs.push_back(tensor.spec);
  }
  auto writer = SafetensorsWriter::Create(std::move(file), std::move(specs), metadata);
  if (!writer.ok()) return writer.status();
  for (const TensorData& tensor : tensors) {
    if (absl::Status status = writer->Append(tensor.bytes); !status.ok()) return status;
  }
  return writer->Finish();
}

absl::Status WriteSafetensors(Env* env, const std::string& path, std::vector<TensorData> tensors,
                              const std::map<std::string, std::string>& metadata) {
  auto file = NewAtomicFile(env, path);
  if (!file.ok()) return file.status();
  return WriteSafetensors(*std::move(file), std::move(tensors), metadata);
}

}  // namespace qlora::engine
