#include "engine/record/storage.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/ops/reduce.h"
#include "kernels/paged_memory.h"

namespace qlora::engine {
namespace {

using kernels::AlignUp;
using kernels::ConstTensor;
using kernels::DType;
using kernels::LinearBase;
using kernels::Tensor;

class Builder {
 public:
  Builder(Storage* storage, Program* program) : s_(*storage), program_(*program) {}

  void Build(const Storage* tables_of) {
    if (tables_of != nullptr) {
      s_.dynamic_map = tables_of->dynamic_map;
      s_.rope_cos = tables_of->rope_cos;
      s_.rope_sin = tables_of->rope_sin;
    } else {
      AddTables();
    }
    const bool whole = s_.options.rows.empty();
    for (const WeightRow& row : whole ? WeightRows(s_.spec) : s_.options.rows) AddWeight(row);
    for (GatheredGroup& group : s_.gathered) ShareOut(&group);
    AddAdapters();
    if (s_.space.size() > 0) AddStates();
    for (WeightSlot& slot : s_.weights) ResolveTrained(&slot);
    for (std::vector<AdapterSlot>& adapter : s_.adapters) {
      for (AdapterSlot& slot : adapter) {
        slot.segment.a = s_.ComputeView(slot.a_parameter);
        slot.segment.b = s_.ComputeView(slot.b_parameter);
      }
    }
  }

 private:
  void AddTables() {
    s_.dynamic_map =
        program_.AddBuffer("8-bit scale map", BufferClass::kTables, DType::kF32, 1, 256);
    const int64_t pairs = s_.spec.rope.rotary_dims / 2;
    s_.rope_cos = program_.AddBuffer("rotary cos", BufferClass::kTables, DType::kF32,
                                     s_.options.rope_positions, pairs);
    s_.rope_sin = program_.AddBuffer("rotary sin", BufferClass::kTables, DType::kF32,
                                     s_.options.rope_positions, pairs);
  }

  void AddWeight(WeightRow row) {
    WeightSlot slot;
    slot.base.out_features = row.rows;
    slot.base.in_features = row.cols;
    if (s_.options.mode == proto::Mode::FULL && s_.options.training) {
      // As Transformers' Trainer: no decay on norms and biases.
      const float decay = KindOf(row.role) == WeightKind::kMatrix ? s_.options.weight_decay : 0.0f;
      slot.parameter = s_.space.Add(row.name, row.rows, row.cols, decay);
    } else if (s_.options.mode == proto::Mode::QLORA && row.quantizable) {
      AddQuantized(row, &slot);
    } else {
      slot.group = GroupOf(row);
      slot.frozen = Add(row, "", BufferClass::kFrozenWeights, FrozenType(row.role), row.rows,
                        row.cols, slot.group);
      SetDense(slot.frozen, &slot);
    }
    slot.row = std::move(row);
    s_.weights.push_back(std::move(slot));
  }

  // Matrices are shared out, a layer's together; the few bytes of vectors are not. The one that was
  // begun last is the only one that can grow: rows come layer by layer.
  int64_t GroupOf(const WeightRow& row) {
    if (!s_.options.shard_base || KindOf(row.role) != WeightKind::kMatrix) return -1;
    const std::string name =
        row.layer < 0 ? row.name : absl::StrCat("layer ", row.layer, " weights");
    if (s_.gathered.empty() || s_.gathered.back().name != name) {
      const Tensor window =
          program_.AddBuffer(name, BufferClass::kGathered, DType::kU8, 1, 0, int(row.layer));
      s_.gathered.push_back({.name = name, .window = Program::IdOf(window.data)});
    }
    return int64_t(s_.gathered.size()) - 1;
  }

  // A weight's part: a buffer, or a place at the end of its group's window.
  Tensor Add(const WeightRow& row, const char* part, BufferClass c, DType dtype, int64_t rows,
             int64_t cols, int64_t group) {
    if (group < 0) {
      return program_.AddBuffer(row.name + part, c, dtype, rows, cols, int(row.layer));
    }
    const BufferId window = s_.gathered[group].window;
    const int64_t offset = program_.buffers()[window].bytes;
    program_.Grow(window, kernels::BufferBytes(rows * cols * kernels::SizeOf(dtype)));
    return {Program::AddressOf(window, offset), dtype, rows, cols, cols};
  }

  void ShareOut(GatheredGroup* group) {
    const BufferInfo window = program_.buffers()[group->window];
    group->rank = s_.options.rank;
    group->shares = Comm::EqualShares(window.bytes, s_.options.ranks, kernels::kBufferAlignment);
    const bool quantized = s_.options.mode == proto::Mode::QLORA && window.layer >= 0;
    group->share = program_.AddBuffer(
        group->name + ", share",
        quantized ? BufferClass::kQuantizedWeights : BufferClass::kFrozenWeights, DType::kU8, 1,
        group->shares[group->rank + 1] - group->shares[group->rank], window.layer);
  }

  // In bf16 runs a matrix stored in fp32 is kept in bf16, the type its products use; vectors stay
  // as stored.
  DType FrozenType(WeightRole role) const {
    const bool narrow = s_.options.compute == DType::kBf16 && KindOf(role) == WeightKind::kMatrix &&
                        s_.spec.stored_dtype == DType::kF32;
    return narrow ? DType::kBf16 : s_.spec.stored_dtype;
  }

  static void SetDense(Tensor view, WeightSlot* slot) {
    slot->dense = view;
    slot->base.kind = LinearBase::Kind::kDense;
    slot->base.dense = view;
  }

  void AddQuantized(const WeightRow& row, WeightSlot* slot) {
    const quant::QuantSpec& spec = s_.options.quant;
    const int64_t n = row.Count();
    slot->group = GroupOf(row);
    const auto add = [&](const char* part, DType dtype, int64_t count) {
      return Add(row, part, BufferClass::kQuantizedWeights, dtype, 1, count, slot->group);
    };
    kernels::QuantizedOutput& out = slot->quantized;
    kernels::QuantizedTensor& in = slot->base.quantized;
    out.codes = add("", DType::kU8, spec.CodeBytes(n));
    out.absmax = add(".absmax", spec.double_quant ? DType::kU8 : DType::kF32, spec.BlockCount(n));
    if (spec.double_quant) {
      out.nested_absmax = add(".nested_absmax", DType::kF32, spec.GroupCount(n));
      out.offset = add(".nested_offset", DType::kF32, 1);
      in.map = s_.dynamic_map;
    }
    in.codes = out.codes, in.absmax = out.absmax;
    in.nested_absmax = out.nested_absmax, in.offset = out.offset;
    in.spec = spec;
    slot->base.kind = LinearBase::Kind::kQuantized;
  }

  void AddAdapters() {
    s_.adapters_of.resize(s_.weights.size());
    for (const LoraTargets& lora : s_.options.lora) AddAdapter(lora);
    if (s_.options.lora.empty()) EndCourse();
  }

  void AddAdapter(const LoraTargets& lora) {
    const int64_t course = int64_t(s_.courses.size());
    std::vector<AdapterSlot>& slots = s_.adapters.emplace_back();
    for (const AdaptedModule& module : lora.modules) {
      AdapterSlot slot;
      slot.a_parameter =
          s_.space.Add(module.KeyA(), module.rank, module.in, s_.options.weight_decay, course);
      slot.b_parameter =
          s_.space.Add(module.KeyB(), module.out, module.rank, s_.options.weight_decay, course);
      slot.segment.scale = module.scaling;
      slot.segment.dropout.probability = s_.options.training ? lora.dropout : 0.0f;
      slot.segment.dropout.key = uint32_t(slots.size());
      s_.adapters_of[module.row].push_back({course, int64_t(slots.size())});
      slots.push_back(std::move(slot));
    }
    EndCourse();
  }

  // What was added to the space since the last one is a course.
  void EndCourse() {
    const CourseRange last = s_.courses.empty() ? CourseRange{} : s_.courses.back();
    CourseRange range{.first_parameter = last.end_parameter,
                      .end_parameter = int64_t(s_.space.parameters().size()),
                      .first_block = last.first_block + last.blocks};
    range.blocks = s_.space.size() / kernels::kParameterBlock - range.first_block;
    s_.courses.push_back(range);
  }

  void AddStates() {
    const int64_t n = s_.space.size();
    const auto flat = [&](const char* name, BufferClass c, DType dtype, int64_t count) {
      return program_.AddBuffer(name, c, dtype, 1, count);
    };
    const bool copy = s_.options.compute == DType::kBf16;
    const bool paged = s_.options.training && s_.options.state_window_bytes > 0;
    const bool shared_out = s_.options.training && s_.options.shard_states;
    // Without training the copy that forward reads is all there is.
    if (!copy || (s_.options.training && !paged && !shared_out)) {
      s_.master = flat("trained parameters", BufferClass::kMaster, DType::kF32, n);
    }
    if (copy) s_.compute = flat("trained parameters, bf16", BufferClass::kCompute, DType::kBf16, n);
    if (!s_.options.training) return;
    ShareOutStates(shared_out);
    if (end_block_ > first_block_) paged ? AddPagedWindows(/*with_master=*/copy) : AddWholeStates();
    s_.gradient = flat("gradients", BufferClass::kGradients, DType::kF32, n);
    for (int64_t i = 0; i < s_.options.pending_gradients; ++i) {
      s_.pending_gradients.push_back(
          flat("gradients awaiting their pair", BufferClass::kGradients, DType::kF32, n));
    }
    s_.segments =
        program_.AddBuffer("parameter segments", BufferClass::kTables, DType::kU8,
                           int64_t(s_.space.Segments().size()), sizeof(kernels::ParameterSegment));
  }

  void ShareOutStates(bool shared_out) {
    const int ranks = s_.options.ranks, rank = s_.options.rank;
    if (shared_out) {
      s_.state_shares = Comm::EqualShares(s_.space.size(), ranks, kernels::kReduceChunk);
    } else {
      s_.state_shares.assign(ranks + 1, s_.space.size());
      std::fill_n(s_.state_shares.begin(), rank + 1, 0);
    }
    first_block_ = s_.state_shares[rank] / kernels::kParameterBlock;
    end_block_ = s_.state_shares[rank + 1] / kernels::kParameterBlock;
  }

  // What of a course's states is this rank's, with no views yet.
  StateWindow OwnPart(int64_t course) const {
    const CourseRange& range = s_.courses[course];
    const int64_t first = std::max(range.first_block, first_block_);
    const int64_t end = std::min(range.first_block + range.blocks, end_block_);
    return {.course = course, .first_block = first, .blocks = std::max<int64_t>(end - first, 0)};
  }

  // In ordinary memory: one buffer a state, one window a course.
  void AddWholeStates() {
    const int64_t blocks = end_block_ - first_block_, n = blocks * kernels::kParameterBlock;
    const auto flat = [&](const char* name, BufferClass c, DType dtype, int64_t count) {
      return program_.AddBuffer(name, c, dtype, 1, count);
    };
    const bool coded = s_.options.eight_bit_states;
    const DType state = coded ? DType::kU8 : DType::kF32;
    Tensor master, m_absmax, v_absmax;
    if (!s_.master) master = flat("trained parameters", BufferClass::kMaster, DType::kF32, n);
    const Tensor m = flat("first moments", BufferClass::kOptimizer, state, n);
    const Tensor v = flat("second moments", BufferClass::kOptimizer, state, n);
    if (coded) {
      m_absmax = flat("first moments' scales", BufferClass::kOptimizer, DType::kF32, blocks);
      v_absmax = flat("second moments' scales", BufferClass::kOptimizer, DType::kF32, blocks);
    }
    for (int64_t course = 0; course < int64_t(s_.courses.size()); ++course) {
      StateWindow window = OwnPart(course);
      if (window.blocks == 0) continue;
      const auto part = [&](const Tensor& buffer, int64_t per_block) {
        return kernels::Slice(buffer, 0, 1, (window.first_block - first_block_) * per_block,
                              window.blocks * per_block);
      };
      window.master = s_.master ? MasterOf(window) : part(master, kernels::kParameterBlock);
      window.m = part(m, kernels::kParameterBlock);
      window.v = part(v, kernels::kParameterBlock);
      if (coded) {
        window.m_absmax = part(m_absmax, 1);
        window.v_absmax = part(v_absmax, 1);
      }
      s_.windows.push_back(window);
    }
  }

  // All states of a run of blocks side by side, so that one move brings what an update needs. The
  // windows are buffers in sequence: their ids tell Execution which window is meant.
  void AddPagedWindows(bool with_master) {
    const bool coded = s_.options.eight_bit_states;
    const int64_t state_bytes = kernels::kParameterBlock * (coded ? 1 : 4);
    const int64_t block_bytes =
        2 * state_bytes + (coded ? 2 * 4 : 0) + (with_master ? kernels::kParameterBlock * 4 : 0);
    int64_t largest = 1;  // course: none needs a larger window
    for (int64_t course = 0; course < int64_t(s_.courses.size()); ++course) {
      largest = std::max(largest, OwnPart(course).blocks);
    }
    const int64_t all = end_block_ - first_block_;
    // The update of each window is a piece of its own: there are not more than some hundred.
    constexpr int64_t kMostWindows = 512;
    const int64_t fewest = std::min(largest, (all + kMostWindows - 1) / kMostWindows);
    const int64_t per_window =
        std::clamp<int64_t>(s_.options.state_window_bytes / block_bytes, fewest, largest);
    s_.paged_window_bytes =
        AlignUp(per_window * block_bytes, s_.options.state_window_bytes >= kernels::kLargePage
                                              ? kernels::kLargePage
                                              : kernels::kPagedWindowAlignment);
    for (int64_t course = 0; course < int64_t(s_.courses.size()); ++course) {
      const StateWindow own = OwnPart(course);
      for (int64_t done = 0; done < own.blocks; done += per_window) {
        AddPagedWindow({.course = course,
                        .first_block = own.first_block + done,
                        .blocks = std::min(per_window, own.blocks - done)},
                       per_window, with_master);
      }
    }
  }

  // Laid out as if it had `most_blocks`: so a state of neighbouring windows is one view, a row a
  // window.
  void AddPagedWindow(StateWindow window, int64_t most_blocks, bool with_master) {
    const bool coded = s_.options.eight_bit_states;
    const Tensor bytes =
        program_.AddBuffer(absl::StrCat("optimizer states, window ", s_.windows.size()),
                           BufferClass::kPagedStates, DType::kU8, 1, s_.paged_window_bytes);
    int64_t offset = 0;
    const auto part = [&](DType dtype, int64_t per_block) {
      const int64_t count = window.blocks * per_block;
      const Tensor view{Program::AddressOf(Program::IdOf(bytes.data), offset), dtype, 1, count,
                        count};
      offset += most_blocks * per_block * kernels::SizeOf(dtype);
      return view;
    };
    const DType state = coded ? DType::kU8 : DType::kF32;
    window.master = with_master ? part(DType::kF32, kernels::kParameterBlock) : MasterOf(window);
    window.m = part(state, kernels::kParameterBlock);
    window.v = part(state, kernels::kParameterBlock);
    if (coded) {
      window.m_absmax = part(DType::kF32, 1);
      window.v_absmax = part(DType::kF32, 1);
    }
    s_.windows.push_back(window);
  }

  Tensor MasterOf(const StateWindow& window) const {
    return kernels::Slice(s_.master, 0, 1, window.first_block * kernels::kParameterBlock,
                          window.blocks * kernels::kParameterBlock);
  }

  void ResolveTrained(WeightSlot* slot) {
    if (slot->parameter >= 0) SetDense(s_.ComputeView(slot->parameter), slot);
  }

  Storage& s_;
  Program& program_;
  int64_t first_block_ = 0, end_block_ = 0;  // of this rank's states
};

}  // namespace

const Tensor& StateWindow::Get(StateField field) const {
  switch (field) {
    case StateField::kMaster:
      return master;
    case StateField::kM:
      return m;
    case StateField::kV:
      return v;
    case StateField::kMAbsmax:
      return m_absmax;
    case StateField::kVAbsmax:
      break;
  }
  return v_absmax;
}

std::optional<DType> Storage::TypeOf(StateField field) const {
  if (field == StateField::kMaster) return DType::kF32;
  const bool is_scale = IsPerBlock(field);
  if (!options.eight_bit_states) return is_scale ? std::nullopt : std::optional(DType::kF32);
  return is_scale ? DType::kF32 : DType::kU8;
}

Tensor Storage::CourseView(int64_t course, Tensor flat) const {
  if (!flat) return flat;
  return kernels::Slice(flat, 0, 1, courses[course].first_element(), courses[course].elements());
}

absl::Span<const Parameter> Storage::ParametersOf(int64_t course) const {
  const CourseRange& range = courses[course];
  return absl::MakeConstSpan(space.parameters())
      .subspan(range.first_parameter, range.end_parameter - range.first_parameter);
}

std::vector<StatePart> Storage::StateParts(StateField field, int64_t offset, int64_t count) const {
  const int64_t block = IsPerBlock(field) ? 1 : kernels::kParameterBlock;
  std::vector<StatePart> parts;
  for (const StateWindow& window : windows) {
    const int64_t window_begin = window.first_block * block;
    const int64_t begin = std::max(offset, window_begin);
    const int64_t end = std::min(offset + count, window_begin + window.blocks * block);
    if (begin >= end) continue;
    parts.push_back({begin - offset,
                     kernels::Slice(window.Get(field), 0, 1, begin - window_begin, end - begin)});
  }
  return parts;
}

StatePart GatheredGroup::Own(Tensor view) const {
  const int64_t size = kernels::SizeOf(view.dtype);
  const int64_t first = Program::OffsetOf(view.data), own = shares[rank];
  const int64_t begin = std::max(first, own);
  const int64_t end = std::max(std::min(first + view.Extent(), shares[rank + 1]), begin);
  const int64_t count = (end - begin) / size;
  return {
      (begin - first) / size,
      {Program::AddressOf(Program::IdOf(share.data), begin - own), view.dtype, 1, count, count}};
}

int64_t QuantizedBytes(const WeightRow& row, const quant::QuantSpec& spec) {
  const int64_t n = row.Count();
  const int64_t scale = spec.double_quant ? 1 : 4;
  int64_t bytes =
      kernels::BufferBytes(spec.CodeBytes(n)) + kernels::BufferBytes(spec.BlockCount(n) * scale);
  if (spec.double_quant) {
    bytes += kernels::BufferBytes(spec.GroupCount(n) * 4) + kernels::BufferBytes(4);
  }
  return bytes;
}

int64_t Storage::Find(WeightRole role, int64_t layer) const {
  for (int64_t i = 0; i < int64_t(weights.size()); ++i) {
    if (weights[i].row.role == role && weights[i].row.layer == layer) return i;
  }
  return -1;
}

Tensor Storage::ComputeView(int64_t parameter) const { return space.View(parameter, trained()); }

Storage AddStorage(const ModelSpec& spec, const StorageOptions& options, Program* program,
                   const Storage* tables_of) {
  Storage storage{.options = options, .spec = spec};
  Builder(&storage, program).Build(tables_of);
  return storage;
}

}  // namespace qlora::engine
