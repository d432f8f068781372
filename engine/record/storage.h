// Where every weight, adapter and state of a run is stored: the persistent buffers of its program.

#ifndef QLORA_ENGINE_RECORD_STORAGE_H_
#define QLORA_ENGINE_RECORD_STORAGE_H_

#include <optional>
#include <string>
#include <vector>

#include "engine/comm/comm.h"
#include "engine/lora/targets.h"
#include "engine/model/model_spec.h"
#include "engine/optim/parameter_space.h"
#include "engine/record/program.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/quantize.h"
#include "proto/job.pb.h"

namespace qlora::engine {

struct StorageOptions {
  proto::Mode::Value mode = proto::Mode::QLORA;
  kernels::DType compute = kernels::DType::kBf16;  // kBf16 or kF32
  quant::QuantSpec quant;
  // In passes without a cache of keys and values.
  kernels::AttentionKernel attention = kernels::AttentionKernel::kOwn;
  // An adapter a course: several are trained beside each other over one base. None in FULL, where
  // the weights are the one course, and where there is no adapter.
  std::vector<LoraTargets> lora;
  bool training = true;  // false: adapters are there, states and gradients are not
  bool eight_bit_states = false;
  // Largest bytes of a window of optimizer states; 0: they lie in ordinary memory, as one window.
  int64_t state_window_bytes = 0;
  float weight_decay = 0;
  int64_t pending_gradients = 0;  // buffers of the tree sum beside the one micro-batches write
  // Of how many ranks that train together this is which.
  int ranks = 1, rank = 0;
  bool shard_states = false;  // this rank has only its share of the states
  bool shard_base = false;    // and of the frozen matrices
  int64_t rope_positions = 0;
  // The weights stored, where that is a part of the model only: rows that WeightRows would give.
  // AdaptedModule::row then counts these. Empty: all.
  std::vector<WeightRow> rows;
};

// One tensor of the model as the program sees it. Views are virtual.
struct WeightSlot {
  WeightRow row;
  int64_t group = -1;  // in Storage::gathered where ranks share it out; its views lie in a window
  int64_t parameter = -1;  // in the parameter space where it is trained
  // Linears read `base`; everything else reads `dense`. For a trained weight both are its compute
  // copy.
  kernels::LinearBase base;
  kernels::ConstTensor dense;
  // Where loading writes: exactly one is set for a frozen weight, none for a trained one.
  kernels::QuantizedOutput quantized;
  kernels::Tensor frozen;
};

struct AdapterSlot {
  int64_t a_parameter, b_parameter;
  kernels::AdapterSegment segment;  // without what is each piece's own: rows, dropout counter
};

// Which adapter of a linear.
struct AdapterIndex {
  int64_t course, module;
};

// What one course trains: a run of parameters, and of blocks of the flat space.
struct CourseRange {
  int64_t first_parameter = 0, end_parameter = 0;
  int64_t first_block = 0, blocks = 0;

  int64_t first_element() const { return first_block * kernels::kParameterBlock; }
  int64_t elements() const { return blocks * kernels::kParameterBlock; }
};

// What an update reads and writes beside the gradient. kMaster only where forward reads a narrower
// copy: otherwise it reads the master, which then is never paged.
enum class StateField : uint8_t { kMaster, kM, kV, kMAbsmax, kVAbsmax };
inline constexpr StateField kStateFields[] = {StateField::kMaster, StateField::kM, StateField::kV,
                                              StateField::kMAbsmax, StateField::kVAbsmax};

// Whether a state has one value for each block.
constexpr bool IsPerBlock(StateField field) {
  return field == StateField::kMAbsmax || field == StateField::kVAbsmax;
}

// The states of blocks [first_block, first_block + blocks) of the flat space, all of one course.
struct StateWindow {
  int64_t course = 0;
  int64_t first_block = 0, blocks = 0;
  kernels::Tensor master, m, v;        // [1, blocks · kParameterBlock]
  kernels::Tensor m_absmax, v_absmax;  // [1, blocks], or empty with fp32 states

  const kernels::Tensor& Get(StateField field) const;
};

// A part of a state, or of a weight, that this rank has in one place.
struct StatePart {
  int64_t begin = 0;  // where in the range that was asked for
  kernels::Tensor view;
};

// Weights that are gathered together from the ranks that share them out: a layer's, say. Their
// views lie in a window that has no memory of its own: engine/step/gather.h gives each use of it a
// place.
struct GatheredGroup {
  std::string name;
  BufferId window = -1;
  Shares shares;  // bytes of the window, by rank
  int rank = 0;
  kernels::Tensor share;  // u8 [1, n]: what this rank has of it

  // What this rank has of a view's elements.
  StatePart Own(kernels::Tensor view) const;
};

struct Storage {
  StorageOptions options;
  ModelSpec spec;
  std::vector<WeightSlot> weights;                     // in the order of WeightRows
  std::vector<std::vector<AdapterSlot>> adapters;      // as options.lora and its modules
  std::vector<std::vector<AdapterIndex>> adapters_of;  // of each weight, by course
  std::vector<GatheredGroup> gathered;  // in the order of their first use; only with shard_base
  ParameterSpace space;
  std::vector<CourseRange> courses;  // in order, at least one

  kernels::Tensor dynamic_map;  // f32 [1, 256]
  kernels::Tensor rope_cos, rope_sin;
  // Flat [1, space.size()]; empty where nothing is trained (no adapter in an evaluation).
  // `master` is empty too where windows alone have it: paged, or of this rank's share.
  kernels::Tensor master, compute, gradient;
  // Whose states are whose, in elements of the flat space: whole chunks of the norm's sum, so that
  // ranks that each sum their chunks come to the same norm. All this rank's without shard_states.
  Shares state_shares;
  std::vector<StateWindow> windows;  // in order; none without training, or where the share is empty
  int64_t paged_window_bytes = 0;    // of a window of class kPagedStates, or 0
  std::vector<kernels::Tensor> pending_gradients;
  kernels::Tensor segments;

  const AdapterSlot& Adapter(const AdapterIndex& i) const { return adapters[i.course][i.module]; }
  // A course's part of a flat view [1, space.size()].
  kernels::Tensor CourseView(int64_t course, kernels::Tensor flat) const;
  // Its parameters.
  absl::Span<const Parameter> ParametersOf(int64_t course) const;
  // Index of the weight with this role, −1 where the model has none.
  int64_t Find(WeightRole role, int64_t layer) const;
  // The view of a parameter that forward reads.
  kernels::Tensor ComputeView(int64_t parameter) const;
  // The type of one state; none where the run has no such state.
  std::optional<kernels::DType> TypeOf(StateField field) const;
  // What this rank has of a range of one state, in order and split where windows end: of `count`
  // values from `offset`, both in elements, or in blocks for the scales.
  std::vector<StatePart> StateParts(StateField field, int64_t offset, int64_t count) const;
  // The flat view that forward reads, which all ranks have whole.
  kernels::Tensor trained() const { return compute ? compute : master; }
  kernels::Tensor GradientView(int64_t parameter) const { return space.View(parameter, gradient); }
};

// Bytes of a quantized weight's parts one behind the other, each aligned as a buffer.
int64_t QuantizedBytes(const WeightRow& row, const quant::QuantSpec& spec);

// `tables_of`: a storage of the same program whose tables this one shares; null: it has its own.
Storage AddStorage(const ModelSpec& spec, const StorageOptions& options, Program* program,
                   const Storage* tables_of = nullptr);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_RECORD_STORAGE_H_
