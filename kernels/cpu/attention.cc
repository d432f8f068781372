#include "kernels/ops/attention.h"

#include <cstring>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/simd.h"

namespace qlora::kernels::cpu {
namespace {

// One row of the table of documents.
struct Document {
  int64_t first_query, queries, first_key, keys;
};
Document DocumentAt(const ConstTensor& documents, int64_t d) {
  const int32_t* row = documents.Row<int32_t>(d);
  return {row[0], row[1], row[2], row[3]};
}

int64_t DocumentCount(const ConstTensor& documents, const ConstTensor& count) {
  return std::clamp<int64_t>(count.Scalar<int32_t>(), 0, documents.rows);
}

int64_t Blocks(int64_t n) { return (n + kAttentionBlock - 1) / kAttentionBlock; }

// The address of (row, column) of a view.
template <class View>
auto* At(const View& t, int64_t row, int64_t column) {
  using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(t.data)>>,
                                  const uint8_t, uint8_t>;
  return static_cast<Byte*>(t.data) + (row * t.pitch + column) * SizeOf(t.dtype);
}

// What forward and backward have in common, for one document and one kv head.
template <class AttentionOp>
AttentionView CommonView(const AttentionOp& op, const Document& document, int64_t kv_head) {
  const AttentionShape& shape = op.shape;
  const int64_t group = shape.query_heads / shape.kv_heads;
  const int64_t query_column = kv_head * group * shape.head_size;
  const int64_t key_column = kv_head * shape.head_size;
  AttentionView view;
  view.is_bf16 = op.q.dtype == DType::kBf16;
  view.q = At(op.q, document.first_query, query_column);
  view.k = At(op.k, document.first_key, key_column);
  view.v = At(op.v, document.first_key, key_column);
  view.q_pitch = op.q.pitch;
  view.k_pitch = op.k.pitch;
  view.v_pitch = op.v.pitch;
  view.queries = document.queries;
  view.keys = document.keys;
  view.group = group;
  view.head_size = shape.head_size;
  view.scale = shape.scale;
  view.softcap = shape.softcap;
  // Positions are 32-bit in the kernels; no window can be longer than the document.
  view.window = std::min<int64_t>(shape.window, int64_t{1} << 30);
  return view;
}

AttentionView ViewOf(const AttentionForward& op, const Document& document, int64_t kv_head) {
  AttentionView view = CommonView(op, document, kv_head);
  view.o = At(op.o, document.first_query, kv_head * view.group * view.head_size);
  view.o_pitch = op.o.pitch;
  view.lse = op.lse.Row<float>(document.first_query) + kv_head * view.group;
  view.lse_pitch = op.lse.pitch;
  return view;
}

AttentionView ViewOf(const AttentionBackward& op, const Document& document, int64_t kv_head) {
  AttentionView view = CommonView(op, document, kv_head);
  const int64_t query_column = kv_head * view.group * view.head_size;
  const int64_t key_column = kv_head * view.head_size;
  view.o = const_cast<uint8_t*>(At(op.o, document.first_query, query_column));
  view.o_pitch = op.o.pitch;
  view.dout = At(op.dout, document.first_query, query_column);
  view.dout_pitch = op.dout.pitch;
  view.dq = At(op.dq, document.first_query, query_column);
  view.dq_pitch = op.dq.pitch;
  view.dk = At(op.dk, document.first_key, key_column);
  view.dk_pitch = op.dk.pitch;
  view.dv = At(op.dv, document.first_key, key_column);
  view.dv_pitch = op.dv.pitch;
  view.lse =
      const_cast<float*>(op.lse.template Row<float>(document.first_query)) + kv_head * view.group;
  view.lse_pitch = op.lse.pitch;
  view.delta_pitch = op.shape.query_heads;
  view.delta =
      op.workspace.Row<float>(0) + document.first_query * view.delta_pitch + kv_head * view.group;
  return view;
}

// A tile: one block of 64 of a document's pairs (or keys), for one kv head. Blocks count from the
// document's end, whose pairs see the most keys, so that the last tile a thread takes is a short
// one.
template <class AttentionOp, class BlocksOf, class F>
void ForAttentionTiles(const AttentionOp& op, ThreadPool& pool, BlocksOf blocks_of, F f) {
  const int64_t documents = DocumentCount(op.documents, op.document_count);
  const int64_t heads = op.shape.kv_heads;
  int64_t tiles = 0;
  for (int64_t d = 0; d < documents; ++d) tiles += heads * blocks_of(DocumentAt(op.documents, d));
  pool.Run(tiles, [&](int64_t tile, uint8_t* scratch) {
    for (int64_t d = 0; d < documents; ++d) {
      const Document document = DocumentAt(op.documents, d);
      const int64_t blocks = blocks_of(document);
      if (tile < heads * blocks) {
        return f(ViewOf(op, document, tile % heads), blocks - 1 - tile / heads, scratch);
      }
      tile -= heads * blocks;
    }
  });
}

}  // namespace

void Run(const AttentionForward& op, const Context& context) {
  const SimdKernels& simd = SimdFor(context.isa);
  if (op.shape.kv_heads == 0) return;
  const int64_t group = op.shape.query_heads / op.shape.kv_heads;
  ForAttentionTiles(
      op, context.pool, [&](const Document& document) { return Blocks(document.queries * group); },
      [&](const AttentionView& view, int64_t block, uint8_t* scratch) {
        const int64_t begin = block * kAttentionBlock;
        const int64_t end = std::min(view.queries * view.group, begin + kAttentionBlock);
        simd.attention_forward(view, begin, end, scratch);
      });
}
int64_t WorkspaceBytes(const AttentionForward&, Isa) { return 0; }

void Run(const AttentionBackward& op, const Context& context) {
  const SimdKernels& simd = SimdFor(context.isa);
  if (op.shape.kv_heads == 0) return;
  const int64_t group = op.shape.query_heads / op.shape.kv_heads;
  const auto query_blocks = [&](const Document& document) {
    return Blocks(document.queries * group);
  };
  ForAttentionTiles(
      op, context.pool, query_blocks, [&](const AttentionView& view, int64_t block, uint8_t*) {
        const int64_t begin = block * kAttentionBlock;
        simd.attention_delta(view, begin,
                             std::min(view.queries * view.group, begin + kAttentionBlock));
      });
  ForAttentionTiles(
      op, context.pool,
      [&](const Document& document) { return query_blocks(document) + Blocks(document.keys); },
      [&](const AttentionView& view, int64_t block, uint8_t* scratch) {
        const int64_t key_blocks = Blocks(view.keys);
        if (block >= key_blocks) {
          const int64_t begin = (block - key_blocks) * kAttentionBlock;
          const int64_t end = std::min(view.queries * view.group, begin + kAttentionBlock);
          simd.attention_backward_queries(view, begin, end, scratch);
        } else {
          const int64_t begin =
              (key_blocks - 1 - block) * kAttentionBlock;  // early keys are seen the most
          simd.attention_backward_keys(view, begin, std::min(view.keys, begin + kAttentionBlock),
                                       scratch);
        }
      });
}
// D = Σ do·o of each query and head.
int64_t WorkspaceBytes(const AttentionBackward& op, Isa) {
  return op.q.rows * op.shape.query_heads * int64_t{sizeof(float)};
}

void Run(const KvAppend& op, const Context& context) {
  const int64_t documents = DocumentCount(op.documents, op.document_count);
  const int64_t bytes = op.x.cols * SizeOf(op.x.dtype);
  context.pool.Run(documents, [&](int64_t d, uint8_t*) {
    const Document document = DocumentAt(op.documents, d);
    const int64_t first = document.first_key + document.keys - document.queries;
    for (int64_t i = 0; i < document.queries; ++i) {
      if (bytes > 0)
        std::memcpy(At(op.cache, first + i, 0), At(op.x, document.first_query + i, 0), bytes);
    }
  });
}
int64_t WorkspaceBytes(const KvAppend&, Isa) { return 0; }

}  // namespace qlora::kernels::cpu
