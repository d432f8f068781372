// A program: what a run does, written down once. Buffers with their sizes, and pieces: lists of ops
// over them.
//
// The plan, recomputation, the time estimate and the execution all walk this; there is no second
// list of buffers. Ops in a program hold *virtual* addresses, (buffer id + 1) << kOffsetBits plus
// an offset, so that an op is the same struct before and after the plan has placed the buffers.
// Bind() turns them into real ones.

#ifndef QLORA_ENGINE_RECORD_PROGRAM_H_
#define QLORA_ENGINE_RECORD_PROGRAM_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "engine/step/kernel_selection.h"
#include "kernels/device.h"
#include "kernels/op_list.h"

namespace qlora::engine {

// What a buffer is for; the plan's table has a line for each.
enum class BufferClass : uint8_t {
  kQuantizedWeights,  // 4-bit codes and their scales
  kFrozenWeights,     // unquantized and not trained
  kMaster,            // fp32 trained parameters
  kCompute,           // their bf16 copies, which forward reads
  kOptimizer,         // moments
  kPagedStates,       // windows of optimizer states, of which only some are on the device at a time
  kGradients,
  kTables,      // rotary tables, parameter segments
  kStepInputs,  // what changes from step to step
  kStepOutputs,
  kKvCache,
  kOffloaded,  // layer inputs that lie in host memory between forward and backward
  kGathered,   // windows of weights that ranks share out; no memory, see engine/step/gather.h
  kTransient,  // activations and workspaces: alive only inside a piece, placed by lifetime
};
inline constexpr int kBufferClasses = int(BufferClass::kTransient) + 1;
const char* NameOf(BufferClass c);

using BufferId = int32_t;

struct BufferInfo {
  std::string name;  // "layer 3 gate"
  BufferClass buffer_class = BufferClass::kTransient;
  int64_t bytes = 0;
  int layer = -1;
};

// Something that happens between two ops, outside the captured parts of a piece. To a window of
// class kOffloaded, under the names of kernels::PagedMemory; kSum: part `window` of the gradient is
// finished (gradient_parts.h); kGather: weights begin to arrive from all ranks in a transient
// buffer, and kArrive: the ones that began first are there (gather.h); kLend: in a step's last
// micro-batch, `window` slots of paged states have room from here on, and kReclaim: the bytes of
// slot `window` are used by what follows (lent_slots.h).
struct Move {
  enum class Kind : uint8_t {
    kClaim,
    kEvict,
    kBring,
    kAwait,
    kDrop,
    kSum,
    kGather,
    kArrive,
    kLend,
    kReclaim
  };
  int64_t before = 0;  // index of the op; ops.size(): behind the last
  Kind kind = Kind::kClaim;
  int64_t window = 0;    // of kGather: the group in Storage::gathered
  BufferId buffer = -1;  // of kGather: what it fills, from here on
};

struct PieceProgram {
  std::string name;
  std::vector<kernels::Op> ops;
  std::vector<Move> moves;  // by `before`
  int64_t backward_begin =
      0;  // index of the first op after the forward pass; = ops.size() without one
};

// Where a transient buffer is needed: from op `first` to op `last` of its piece, inclusive. One
// that is gathered is needed from the begin of that on.
struct Lifetime {
  BufferId buffer;
  int64_t first, last;
};

class Program {
 public:
  static constexpr int kOffsetBits = 40;  // buffers of up to 1 TiB

  kernels::Tensor AddBuffer(std::string name, BufferClass c, kernels::DType dtype, int64_t rows,
                            int64_t cols, int layer = -1);

  const std::vector<BufferInfo>& buffers() const { return buffers_; }
  std::vector<PieceProgram>& pieces() { return pieces_; }
  const std::vector<PieceProgram>& pieces() const { return pieces_; }
  int64_t BytesOf(BufferClass c) const;
  // All ops of all pieces.
  std::vector<kernels::Op> Ops() const;
  // For windows of class kGathered, which are filled one weight after another.
  void Grow(BufferId id, int64_t bytes) { buffers_[id].bytes += bytes; }
  // Takes a transient buffer out of the arena: from now on it is a window of host memory.
  void MakeOffloaded(BufferId id) { buffers_[id].buffer_class = BufferClass::kOffloaded; }

  static BufferId IdOf(const void* virtual_address) {
    return BufferId(reinterpret_cast<uintptr_t>(virtual_address) >> kOffsetBits) - 1;
  }
  static int64_t OffsetOf(const void* virtual_address) {
    return int64_t(reinterpret_cast<uintptr_t>(virtual_address) &
                   ((uintptr_t{1} << kOffsetBits) - 1));
  }
  static void* AddressOf(BufferId id, int64_t offset = 0) {
    return reinterpret_cast<void*>((uintptr_t(id) + 1) << kOffsetBits | uintptr_t(offset));
  }

  // The transient buffers that a piece's ops touch, in order of first use.
  std::vector<Lifetime> Lifetimes(const PieceProgram& piece) const;

  // The ops of a piece with real addresses: `base[id]` is where buffer id begins.
  static std::vector<kernels::Op> Bind(absl::Span<const kernels::Op> ops,
                                       absl::Span<void* const> base);
  static kernels::Tensor Bind(kernels::Tensor view, absl::Span<void* const> base);

 private:
  std::vector<BufferInfo> buffers_;
  std::vector<PieceProgram> pieces_;
};

// Appends ops to a piece of a program, and gives each its variant, and the tail and the workspace
// that the device asks for.
class Recorder {
 public:
  Recorder(Program* program, const kernels::Device* device, const KernelSelection* kernels,
           std::string piece_name)
      : program_(program), device_(device), kernels_(kernels) {
    piece_.name = std::move(piece_name);
  }

  kernels::Tensor Transient(std::string name, kernels::DType dtype, int64_t rows, int64_t cols,
                            int layer) {
    return program_->AddBuffer(std::move(name), BufferClass::kTransient, dtype, rows, cols, layer);
  }

  // What Emit would make of the op's tail, had it room.
  template <class O>
  int64_t TailColumns(O op) const {
    op.variant = kernels_->For(op, *device_);
    return device_->TailColumns(op);
  }

  int64_t FirstProductRank(const kernels::RmsNormForward& op) const {
    return device_->FirstProductRank(op);
  }

  // A linear op's `tail` comes as all the room that there is behind its input.
  template <class O>
  void Emit(O op, int layer = -1) {
    if constexpr (requires { op.variant; }) op.variant = kernels_->For(op, *device_);
    if constexpr (requires { op.tail; }) {
      op.tail = kernels::TailWithin(op.tail, device_->TailColumns(op));
    }
    if constexpr (requires { op.workspace; }) {
      const int64_t bytes = device_->WorkspaceBytes(op);
      if (bytes > 0 && !op.workspace) {
        op.workspace = Transient(std::string("workspace of ") + O::kName, kernels::DType::kU8, 1,
                                 bytes, layer);
      }
    }
    piece_.ops.emplace_back(std::move(op));
  }

  void BeginBackward() { piece_.backward_begin = int64_t(piece_.ops.size()); }
  // Hands the piece to the program. Without BeginBackward all of it is forward.
  void Finish(bool has_backward);

 private:
  Program* program_;
  const kernels::Device* device_;
  const KernelSelection* kernels_;
  PieceProgram piece_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_RECORD_PROGRAM_H_
