// Cases of attention and of the key/value cache.

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "tests/kernels/op_cases.h"
#include "tests/support/reference_ops.h"

namespace qlora::kernels::optest {
namespace {

std::string Describe(const AttentionParams& p) {
  std::string name =
      absl::StrCat(NameOf(p.dtype), " heads ", p.shape.query_heads, "/", p.shape.kv_heads, " size ",
                   p.shape.head_size, " window ", p.shape.window, " softcap ", p.shape.softcap,
                   " Tq ", p.query_rows, " Tk ", p.key_rows);
  for (const auto& d : p.documents) {
    absl::StrAppend(&name, " (", d[0], "+", d[1], " ", d[2], "+", d[3], ")");
  }
  absl::StrAppend(&name, p.pitched ? " pitched" : "", " seed ", p.seed);
  return name;
}

struct Operands {
  Tensor documents, count;
};

Operands NewDocuments(OperandMemory& memory, const AttentionParams& p) {
  Operands o;
  o.documents = memory.New(DType::kI32, int64_t(p.documents.size()) + p.spare_documents, 4);
  for (size_t d = 0; d < p.documents.size(); ++d) {
    std::copy(p.documents[d].begin(), p.documents[d].end(), o.documents.Row<int32_t>(int64_t(d)));
  }
  o.count = memory.NewI32(int32_t(p.documents.size()));
  return o;
}

// Normal numbers in the rows of documents (their queries, or their keys), poison elsewhere.
Tensor NewRows(OperandMemory& memory, const AttentionParams& p, int64_t heads, bool keys,
               double deviation) {
  const Tensor t = memory.New(p.dtype, keys ? p.key_rows : p.query_rows, heads * p.shape.head_size);
  for (const auto& d : p.documents) {
    FillNormal(memory.random(), SliceRows(t, d[keys ? 2 : 0], d[keys ? 3 : 1]), deviation);
  }
  return t;
}

AttentionParams RandomParams(CountedRandom& random, int index, uint64_t seed) {
  AttentionParams p;
  p.seed = seed * 1000003 + uint64_t(index);
  p.dtype = random.Chance(0.6) ? DType::kBf16 : DType::kF32;
  const auto heads = random.Pick<std::array<int64_t, 2>>(
      {{1, 1}, {2, 1}, {2, 2}, {4, 2}, {3, 1}, {6, 2}, {4, 1}, {8, 2}});
  p.shape.query_heads = heads[0];
  p.shape.kv_heads = heads[1];
  p.shape.head_size = random.Pick<int64_t>({1, 5, 8, 16, 16, 24, 32, 32, 64, 64, 80, 96, 128});
  p.shape.scale = random.Chance(0.8) ? float(1 / std::sqrt(double(p.shape.head_size))) : 0.11f;
  p.shape.softcap = random.Pick({0.0f, 0.0f, 0.0f, 30.0f, 2.0f});
  p.shape.window = random.Pick<int64_t>({0, 0, 0, 1, 2, 7, 16, 33, 64});
  const bool cached = random.Chance(0.4);
  const bool big = index % 25 == 24;
  const int count = big ? 1 + index % 2 : random.Pick({0, 1, 1, 2, 3, 5});
  int32_t query = 0, key = 0;
  for (int d = 0; d < count; ++d) {
    int32_t queries = random.Pick({1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33});
    if (random.Chance(0.1)) queries = random.Pick({63, 64, 65});
    if (big) queries = random.Pick({129, 100, 131});
    // A gap before a document belongs to none: padding, or another cache slot's spare rows.
    query += random.Chance(0.2) ? 3 : 0;
    if (cached) {
      key += random.Chance(0.3) ? 2 : 0;
      const int32_t past = random.Pick({0, 1, 2, 5, 17, 40});
      if (random.Chance(0.3)) queries = 1;
      p.documents.push_back({query, queries, key, queries + past});
      key += queries + past;
    } else {
      p.documents.push_back({query, queries, query, queries});
      key = query + queries;
    }
    query += queries;
  }
  p.query_rows = query + random.Pick({0, 0, 1, 7});
  p.key_rows = cached ? key + random.Pick({0, 0, 1, 9}) : p.query_rows;
  p.spare_documents = random.Pick<int64_t>({0, 0, 1, 4});
  // Cache slots are handed out in any order.
  if (cached && random.Chance(0.5)) std::reverse(p.documents.begin(), p.documents.end());
  p.pitched = index % 3 != 0;
  return p;
}

CountedRandom Stream(uint64_t seed, int op, int index) {
  return CountedRandom(seed * 0x10001 + uint64_t(op) * 0x1000000 + uint64_t(index));
}

}  // namespace

OpCase<AttentionForward> MakeAttentionForward(const AttentionParams& p) {
  auto memory = std::make_shared<OperandMemory>(p.seed, p.pitched);
  AttentionForward op;
  op.q = NewRows(*memory, p, p.shape.query_heads, false, 1);
  op.k = NewRows(*memory, p, p.shape.kv_heads, true, 1);
  op.v = NewRows(*memory, p, p.shape.kv_heads, true, 1);
  const Operands documents = NewDocuments(*memory, p);
  op.documents = documents.documents;
  op.document_count = documents.count;
  op.shape = p.shape;
  op.o = memory->New(p.dtype, p.query_rows, op.q.cols);
  op.lse = memory->New(DType::kF32, p.query_rows, p.shape.query_heads);
  return {Describe(p), memory, op};
}

OpCase<AttentionBackward> MakeAttentionBackward(const AttentionParams& p) {
  const OpCase<AttentionForward> forward = MakeAttentionForward(p);
  const auto memory = forward.memory;
  for (const Expected& e : Reference(forward.op)) {
    for (int64_t r = 0; r < e.view.rows; ++r) {
      for (int64_t c = 0; c < e.view.cols; ++c) {
        if (e.rule[e.Index(r, c)] == Expected::Rule::kUntouched) continue;
        Put(e.view, r, c, e.Value(r, c));
      }
    }
  }
  AttentionBackward op;
  op.q = forward.op.q, op.k = forward.op.k, op.v = forward.op.v;
  op.o = forward.op.o, op.lse = forward.op.lse;
  op.dout = NewRows(*memory, p, p.shape.query_heads, false, 0.5);
  op.documents = forward.op.documents;
  op.document_count = forward.op.document_count;
  op.shape = p.shape;
  op.dq = memory->New(p.dtype, p.query_rows, op.q.cols);
  op.dk = memory->New(p.dtype, p.key_rows, op.k.cols);
  op.dv = memory->New(p.dtype, p.key_rows, op.v.cols);
  return {forward.name, memory, op};
}

OpCase<KvAppend> MakeKvAppend(const AttentionParams& p) {
  auto memory = std::make_shared<OperandMemory>(p.seed, p.pitched);
  KvAppend op;
  op.x = NewRows(*memory, p, p.shape.kv_heads, false, 1);
  const Operands documents = NewDocuments(*memory, p);
  op.documents = documents.documents;
  op.document_count = documents.count;
  op.cache = memory->New(p.dtype, p.key_rows, op.x.cols);
  return {Describe(p), memory, op};
}

int OpCases<AttentionForward>::Count() { return 250; }
OpCase<AttentionForward> OpCases<AttentionForward>::Make(int index, uint64_t seed) {
  CountedRandom random = Stream(seed, 6, index);
  return MakeAttentionForward(RandomParams(random, index, seed));
}

int OpCases<AttentionBackward>::Count() { return 250; }
OpCase<AttentionBackward> OpCases<AttentionBackward>::Make(int index, uint64_t seed) {
  CountedRandom random = Stream(seed, 7, index);
  return MakeAttentionBackward(RandomParams(random, index, seed));
}

int OpCases<KvAppend>::Count() { return 220; }
OpCase<KvAppend> OpCases<KvAppend>::Make(int index, uint64_t seed) {
  CountedRandom random = Stream(seed, 8, index);
  return MakeKvAppend(RandomParams(random, index, seed));
}

}  // namespace qlora::kernels::optest
