#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <type_traits>
#include <variant>

#include "absl/strings/str_cat.h"
#include "gpu/primitives.h"
#include "kernels/cuda/cudnn_attention.h"
#include "kernels/cuda/library_attention.h"
#include "kernels/cuda/views.h"

namespace qlora::kernels::cuda {
namespace {

constexpr int64_t kLibraryAlignment = 256;
constexpr int kThreads = 128;

// The operands of an op in the library's order; those that it has not are empty.
using Operands = std::array<ConstTensor, gpu::kSdpaOperands>;
Operands OperandsOf(const AttentionForward& op) { return {op.q, op.k, op.v, op.o, op.lse}; }
Operands OperandsOf(const AttentionBackward& op) {
  return {op.q, op.k, op.v, op.o, op.lse, op.dout, op.dq, op.dk, op.dv};
}

template <class O>
gpu::SdpaProblem ProblemOf(const O& op) {
  gpu::SdpaProblem problem = {.backward = std::is_same_v<O, AttentionBackward>,
                              .tokens = op.q.rows,
                              .documents = op.documents.rows,
                              .query_heads = op.shape.query_heads,
                              .kv_heads = op.shape.kv_heads,
                              .head_size = op.shape.head_size,
                              .scale = op.shape.scale,
                              .window = op.shape.window};
  const Operands operands = OperandsOf(op);
  for (int i = 0; i < gpu::kSdpaOperands; ++i) problem.pitch[i] = operands[i].pitch;
  return problem;
}

// Tables of i32 in front of the library's own workspace: lengths, then the begins of each operand.
int64_t TablesBytes(int64_t documents) {
  return AlignUp((documents + gpu::kSdpaOperands * (documents + 1)) * 4, kLibraryAlignment);
}

absl::Status Refusal(const AttentionShape& shape, const ConstTensor& q,
                     const gpu::Properties& card) {
  std::string why;
  if (card.major < 9) {
    why = absl::StrCat(
        "it gives the same bytes every time over packed sequences from compute "
        "capability 9.0 on, and ",
        card.name, " has ", card.major, ".", card.minor);
  } else if (q.dtype != DType::kBf16) {
    why = absl::StrCat("it takes bf16 here, not ", NameOf(q.dtype));
  } else if (shape.softcap > 0) {
    why = "this model's attention scores have a soft cap";
  } else if (shape.head_size % 8 != 0 || shape.head_size > (card.major == 9 ? 256 : 128)) {
    why = absl::StrCat("it takes heads of a multiple of 8 up to ", card.major == 9 ? 256 : 128,
                       " elements on this card, and this model has ", shape.head_size);
  }
  if (why.empty()) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat("cuDNN can't be used: ", why));
}

template <class O>
absl::StatusOr<int64_t> BytesOf(const O& op, const gpu::Properties& card) {
  if (absl::Status s = Refusal(op.shape, op.q, card); !s.ok()) return s;
  const gpu::SdpaProblem problem = ProblemOf(op);
  const int64_t widest = *std::max_element(problem.pitch.begin(), problem.pitch.end());
  if (problem.tokens * widest > INT32_MAX) {
    return absl::UnimplementedError(absl::StrCat("cuDNN can't be used: ", problem.tokens,
                                                 " tokens of ", widest,
                                                 " elements are not counted in 32 bits"));
  }
  const absl::StatusOr<int64_t> bytes = gpu::PrepareSdpa(problem, card);
  if (!bytes.ok()) return bytes.status();
  return kLibraryAlignment + TablesBytes(op.documents.rows) + *bytes;
}

struct Tables {
  ConstTensor documents;
  const int32_t* count;
  int32_t* lengths;
  int32_t* begins;  // [kSdpaOperands, documents + 1]
  std::array<int64_t, gpu::kSdpaOperands> pitch;
};

QLORA_KERNEL void FillTables(Tables t) {
  const int64_t d = gpu::BlockX() * kThreads + gpu::ThreadX();
  const int64_t capacity = t.documents.rows;
  if (d > capacity) return;
  const int64_t count = *t.count;
  const auto number = [&](int64_t document, int column) {
    return static_cast<const int32_t*>(t.documents.data)[document * t.documents.pitch + column];
  };
  if (d < capacity) t.lengths[d] = d < count ? number(d, 1) : 0;
  // Those that are not there begin where the last one ends.
  const int64_t row = d < count   ? number(d, 0)
                      : count > 0 ? number(count - 1, 0) + number(count - 1, 1)
                                  : 0;
  for (int i = 0; i < gpu::kSdpaOperands; ++i) {
    t.begins[i * (capacity + 1) + d] = int32_t(row * t.pitch[i]);
  }
}

template <class O>
void RunBoth(const O& op, const Context& context) {
  const int64_t capacity = op.documents.rows;
  const gpu::SdpaProblem problem = ProblemOf(op);
  uint8_t* const workspace = reinterpret_cast<uint8_t*>(
      AlignUp(reinterpret_cast<intptr_t>(op.workspace.data), kLibraryAlignment));
  int32_t* const lengths = reinterpret_cast<int32_t*>(workspace);
  int32_t* const begins = lengths + capacity;
  gpu::Launch(context.launcher, O::kName, &FillTables,
              {.blocks_x = CeilDiv(capacity + 1, kThreads), .threads = kThreads},
              Tables{op.documents, static_cast<const int32_t*>(op.document_count.data), lengths,
                     begins, problem.pitch});
  gpu::SdpaAddresses addresses = {.lengths = lengths,
                                  .workspace = workspace + TablesBytes(capacity)};
  const Operands operands = OperandsOf(op);
  for (int i = 0; i < gpu::kSdpaOperands; ++i) {
    addresses.data[i] = const_cast<void*>(operands[i].data);
    addresses.begins[i] = begins + i * (capacity + 1);
  }
  gpu::RunSdpa(context.launcher, problem, addresses);
}

}  // namespace

absl::StatusOr<int64_t> LibraryAttentionBytes(const Op& op, const gpu::Properties& card) {
  if (const auto* forward = std::get_if<AttentionForward>(&op)) return BytesOf(*forward, card);
  return BytesOf(std::get<AttentionBackward>(op), card);
}

void RunLibraryAttention(const AttentionForward& op, const Context& context) {
  RunBoth(op, context);
}
void RunLibraryAttention(const AttentionBackward& op, const Context& context) {
  RunBoth(op, context);
}

}  // namespace qlora::kernels::cuda
