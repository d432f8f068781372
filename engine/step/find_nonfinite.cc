#include "engine/step/find_nonfinite.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <set>
#include <type_traits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/model/element_convert.h"

namespace qlora::engine {
namespace {

using kernels::ConstTensor;
using kernels::DType;
using kernels::Op;
using kernels::Tensor;

constexpr int64_t kChunkBytes = 1 << 20;

// A value, and where it stands.
struct Found {
  int64_t row, column;
  const char* value;
};

class Watcher {
 public:
  Watcher(Execution* execution, const TrainPieces& pieces, int64_t live_tokens)
      : execution_(*execution),
        storage_(execution->plan().run.storage),
        buffers_(execution->plan().run.program.buffers()),
        inputs_(pieces.inputs),
        live_tokens_(live_tokens) {}

  absl::Status Look(const Op& op) {
    if (!first_.empty()) return absl::OkStatus();
    absl::Status status;
    kernels::VisitTensors(op, [&](absl::string_view name, const auto& view) {
      constexpr bool kIsWritten = std::is_same_v<std::remove_cvref_t<decltype(view)>, Tensor>;
      // Of several adapters each has rows of its own there: the others hold anything.
      const bool is_partial = inputs_.courses > 1 && (name == "low" || name == "up");
      const bool is_scratch = is_partial || name == "tail" || name == "workspace";
      if (!kIsWritten || is_scratch || !status.ok() || !first_.empty()) return;
      status = LookAt(op, view);
    });
    return status;
  }

  const std::string& first() const { return first_; }

 private:
  // At what `op` has written.
  absl::Status LookAt(const Op& op, ConstTensor view) {
    absl::StatusOr<std::optional<Found>> found = Search(view);
    if (!found.ok()) return found.status();
    if (!*found) return absl::OkStatus();
    first_ = Describe(view, **found, absl::StrCat("written by ", kernels::NameOf(op)));
    // Activations that it read have been looked at when they were written; weights have not.
    absl::Status status;
    bool is_read = false;
    kernels::VisitTensors(op, [&](const char*, const auto& operand) {
      if constexpr (std::is_same_v<std::remove_cvref_t<decltype(operand)>, ConstTensor>) {
        if (!operand || is_read || !status.ok() || IsActivation(operand)) return;
        found = Search(operand);
        status = found.status();
        if (!status.ok() || !*found) return;
        is_read = true;
        first_ = Describe(operand, **found,
                          absl::StrCat("read by ", kernels::NameOf(op), " for ", NameOf(view)));
      }
    });
    return status;
  }

  bool IsActivation(ConstTensor view) const {
    const BufferClass c = buffers_[Program::IdOf(view.data)].buffer_class;
    return c == BufferClass::kTransient || c == BufferClass::kOffloaded;
  }

  // Rows of activations are tokens, or several of each; those behind the live ones hold whatever
  // was there before.
  int64_t LiveRows(ConstTensor view) const {
    const int64_t capacity = inputs_.capacity.tokens;
    if (!IsActivation(view) || view.rows % capacity != 0) return view.rows;
    return view.rows / capacity * live_tokens_;
  }

  // Rows without gaps between them are searched as one.
  absl::StatusOr<std::optional<Found>> Search(ConstTensor view) {
    if (!view) return std::nullopt;
    const int64_t rows = LiveRows(view), cols = view.cols;
    const bool is_flat = view.pitch == cols;
    const int64_t runs = is_flat ? 1 : rows, length = is_flat ? rows * cols : cols;
    const int64_t size = kernels::SizeOf(view.dtype), step = kChunkBytes / size;
    for (int64_t run = 0; run < runs; ++run) {
      for (int64_t at = 0; at < length; at += step) {
        const int64_t count = std::min(step, length - at);
        const auto* const data =
            static_cast<const uint8_t*>(view.data) + (run * view.pitch + at) * size;
        bytes_.resize(size_t(count * size));
        if (absl::Status s = execution_.Read({data, view.dtype, 1, count, count}, bytes_.data(),
                                             int64_t(bytes_.size()));
            !s.ok()) {
          return s;
        }
        const int64_t bad = FirstNonFinite(view.dtype, bytes_);
        if (bad < 0) continue;
        const int64_t place = run * cols + at + bad;
        return Found{place / cols, place % cols, ValueAt(view.dtype, bad)};
      }
    }
    return std::nullopt;
  }

  const char* ValueAt(DType type, int64_t index) const {
    double value;
    if (type == DType::kF64) {
      std::memcpy(&value, bytes_.data() + index * 8, 8);
    } else {
      float narrow;
      ConvertElements(type, bytes_.data() + index * kernels::SizeOf(type), 1, DType::kF32, &narrow);
      value = narrow;
    }
    return std::isnan(value) ? "NaN" : value > 0 ? "infinity" : "-infinity";
  }

  // Of the parameter, where the view is of all parameters' values or gradients.
  std::string NameOf(ConstTensor view) const {
    const BufferId id = Program::IdOf(view.data);
    const bool is_gradient = storage_.gradient && id == Program::IdOf(storage_.gradient.data);
    const bool is_trained = storage_.trained() && id == Program::IdOf(storage_.trained().data);
    if (!is_gradient && !is_trained) return buffers_[id].name;
    const int64_t element = Program::OffsetOf(view.data) / kernels::SizeOf(view.dtype);
    const ParameterSpace& space = storage_.space;
    return absl::StrCat(is_gradient ? "the gradient of " : "",
                        space.parameters()[space.IndexAt(element)].name);
  }

  std::string Describe(ConstTensor view, const Found& found, const std::string& by) const {
    return absl::StrCat(NameOf(view), " (", found.value, " in row ", found.row, ", column ",
                        found.column, ", ", by, ")");
  }

  Execution& execution_;
  const Storage& storage_;
  const std::vector<BufferInfo>& buffers_;
  const BatchViews& inputs_;
  const int64_t live_tokens_;
  std::vector<uint8_t> bytes_;
  std::string first_;
};

}  // namespace

absl::StatusOr<std::string> FindNonFinite(Execution* execution, const TrainPieces& pieces) {
  const absl::StatusOr<int32_t> live = execution->ReadScalar<int32_t>(pieces.inputs.live_tokens);
  if (!live.ok()) return live.status();
  if (absl::Status s = execution->Run(pieces.begin_sum); !s.ok()) return s;
  Watcher watcher(execution, pieces, *live);
  const absl::Status status =
      execution->RunWatched(pieces.micro_batch, [&](const Op& op) { return watcher.Look(op); });
  if (!status.ok()) return status;
  return watcher.first();
}

}  // namespace qlora::engine
