// The cases of every op, for its tests and its benchmarks: shapes, types and contents, made from an
// index alone.
//
// OpCases<Op> has no definition but the specialisations below, one for each op of op_list.h: an op
// without cases does not compile. Each op also has a maker that takes its parameters, for tests and
// benchmarks that want shapes of their own.
//
// Contents are normal numbers of the size that training sees. Rows behind the live ones, gaps
// between rows and outputs hold poison (see operand_memory.h), index columns of dead rows included:
// an op that follows one of them leaves its memory.

#ifndef QLORA_TESTS_KERNELS_OP_CASES_H_
#define QLORA_TESTS_KERNELS_OP_CASES_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/op_list.h"
#include "tests/support/operand_memory.h"

namespace qlora::kernels::optest {

template <class OpType>
struct OpCase {
  std::string name;  // shape and types, for reports
  std::shared_ptr<OperandMemory> memory;
  OpType op;  // views of `memory`; `workspace` is empty
};

// Count() cases, at least kMinCases; Make(i) depends on i and `seed` alone.
inline constexpr int kMinCases = 200;
inline constexpr uint64_t kDefaultSeed = 1;

template <class OpType>
struct OpCases;

#define QLORA_DECLARE_CASES(OpType)                                      \
  template <>                                                            \
  struct OpCases<OpType> {                                               \
    static int Count();                                                  \
    static OpCase<OpType> Make(int index, uint64_t seed = kDefaultSeed); \
  };
QLORA_FOR_EACH_OP(QLORA_DECLARE_CASES)
#undef QLORA_DECLARE_CASES

// ---- Makers

// `live` is the count behind LiveRows; kAllLive leaves that view empty.
inline constexpr int64_t kAllLive = -1;

struct LinearParams {
  struct Adapter {
    int64_t rank = 8;
    int64_t first = -1, end = -1;  // -1: no row range, all live rows
    float scale = 2.0f;
    float dropout = 0.0f;
    bool given = false;  // LinearForward: `low` is there already
  };
  int64_t rows = 0, in = 0, out = 0;
  DType x = DType::kBf16;  // and dy's
  DType y = DType::kBf16;  // forward only
  LinearBase::Kind base = LinearBase::Kind::kQuantized;
  DType dense = DType::kBf16;
  quant::QuantSpec spec = {};
  bool bias = false;
  DType bias_type = DType::kBf16;
  int64_t live = kAllLive;
  std::vector<Adapter> adapters = {};
  bool accumulate = false;
  bool want_dx = true;  // LinearBackwardInput
  int64_t tail = 0;     // columns of `tail` behind x or dy
  bool pitched = false;
  uint64_t seed = kDefaultSeed;
};
// At least so many over `rows` rows: over all of them, or neighbouring ranges as a sweep has them,
// empty ones among them, or ranges that overlap.
std::vector<LinearParams::Adapter> RandomAdapters(CountedRandom& random, int least, int64_t rows);
OpCase<LinearForward> MakeLinearForward(const LinearParams& p);
// Of an x with p.rows, p.in and p.x.
FirstProduct NewFirstProduct(OperandMemory& memory, const LinearParams& p,
                             const LinearParams::Adapter& adapter);
OpCase<LinearBackwardInput> MakeLinearBackwardInput(const LinearParams& p);
// Of the first adapter.
OpCase<LinearBackwardAdapter> MakeLinearBackwardAdapter(const LinearParams& p);
OpCase<LinearBackwardWeight> MakeLinearBackwardWeight(const LinearParams& p);

struct CrossEntropyParams {
  LinearParams head =
      {};  // rows, in, out = vocabulary, x = h's type, base, spec, live, pitched, seed
  int64_t capacity = 0, trained = 0;  // of the trained rows
  int64_t segments = 1;
  int64_t chunk_rows = 16;
  float softcap = 0.0f;
  bool accumulate = false;
  bool row_loss = true, correct = true, dh = true, dhead = false;
};
OpCase<LinearCrossEntropy> MakeLinearCrossEntropy(const CrossEntropyParams& p);

struct AttentionParams {
  AttentionShape shape = {};
  DType dtype = DType::kBf16;
  // [first query row, query rows, first key row, key rows] of each.
  std::vector<std::array<int32_t, 4>> documents = {};
  int64_t spare_documents = 0;           // capacity beyond the count
  int64_t query_rows = 0, key_rows = 0;  // capacities
  bool pitched = false;
  uint64_t seed = kDefaultSeed;
};
OpCase<AttentionForward> MakeAttentionForward(const AttentionParams& p);
// With o and lse of the reference forward.
OpCase<AttentionBackward> MakeAttentionBackward(const AttentionParams& p);
OpCase<KvAppend> MakeKvAppend(const AttentionParams& p);

// Ops that work row by row.
struct RowParams {
  int64_t rows = 0, cols = 0;
  DType dtype = DType::kBf16;
  DType weight = DType::kBf16;  // of the table or the norm's weight
  int64_t live = kAllLive;
  bool pitched = false;
  bool in_place = false;
  uint64_t seed = kDefaultSeed;
  // Embedding.
  int64_t vocabulary = 16;
  float scale = 1.0f;
  // RMSNorm.
  bool residual = false;
  bool train_weight = false;
  int64_t rows_per_token = 1;
  float weight_offset = 0.0f;
  std::vector<LinearParams::Adapter> products = {};  // of RmsNormForward; rows_per_token is 1
  // Rope; cols = heads · head_size.
  int64_t head_size = 0, rotary = 0, positions = 0;
  bool inverse = false;
  // Gated activation.
  Activation activation = Activation::kSilu;
};
OpCase<EmbeddingForward> MakeEmbeddingForward(const RowParams& p);
OpCase<EmbeddingBackward> MakeEmbeddingBackward(const RowParams& p);
OpCase<RmsNormForward> MakeRmsNormForward(const RowParams& p);
OpCase<RmsNormBackward> MakeRmsNormBackward(const RowParams& p);
OpCase<Rope> MakeRope(const RowParams& p);
OpCase<GatedActivationForward> MakeGatedActivationForward(const RowParams& p);
OpCase<GatedActivationBackward> MakeGatedActivationBackward(const RowParams& p);

struct UpdateParams {
  int64_t n = 0;
  DType dtype = DType::kF32;  // of what is reduced or cleared
  int64_t nonfinite = 0;      // elements that are made NaN or infinite
  bool pitched = false;
  uint64_t seed = kDefaultSeed;
  // AdamW.
  bool coded_states = false, compute = true, skip = false;
  bool fresh = false;  // moments are zero, as at the first step
  int64_t first_block = 0;
  int64_t window_blocks = 0;  // states lie in windows of so many; 0: one behind the other
  bool whole_master = false;  // but for the master
  int adapters = 1;
  int segments = 1;
  // Zero.
  int64_t rows = 1;
  // GradientScale.
  float max_norm = 0.0f;
};
OpCase<AdamW> MakeAdamW(const UpdateParams& p);
OpCase<NormAndFinite> MakeNormAndFinite(const UpdateParams& p);
OpCase<ContentHash> MakeContentHash(const UpdateParams& p);
OpCase<AddGradient> MakeAddGradient(const UpdateParams& p);
OpCase<Zero> MakeZero(const UpdateParams& p);
OpCase<GradientScale> MakeGradientScale(const UpdateParams& p);

struct QuantizeParams {
  int64_t rows = 0, cols = 0;
  DType dtype = DType::kBf16;
  quant::QuantSpec spec = {};
  // Contents that are hard on the format.
  enum class Contents { kNormal, kZero, kZeroBlocks, kTies, kTiny, kHuge, kNonfinite };
  Contents contents = Contents::kNormal;
  bool pitched = false;  // only misaligned: the views are contiguous
  uint64_t seed = kDefaultSeed;
};
OpCase<Quantize> MakeQuantize(const QuantizeParams& p);
OpCase<Dequantize> MakeDequantize(const QuantizeParams& p);
OpCase<Pack> MakePack(const QuantizeParams& p);
OpCase<Unpack> MakeUnpack(const QuantizeParams& p);

// bitsandbytes' bytes of random weights, made by the reference quantizer: normal, of deviation
// 1/√cols.
QuantizedTensor NewQuantized(OperandMemory& memory, int64_t rows, int64_t cols,
                             const quant::QuantSpec& spec);

}  // namespace qlora::kernels::optest

#endif  // QLORA_TESTS_KERNELS_OP_CASES_H_
