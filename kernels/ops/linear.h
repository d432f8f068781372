// The linear op: one frozen or trained base, and any number of low-rank adapter segments on top of
// it.
//
// Forward, for row t, with D the dropout mask of the segment (inverted: kept elements are scaled by
// 1/keep):
//
//   low  = (D∘x) · Aᵀ                          [T, r], rounded to low's type
//   y    = x · Wᵀ + bias + Σ scale · low · Bᵀ  [T, N], summed in fp32, rounded once
//
// Backward:
//
//   up   = scale · dy · B                      [T, r], rounded to up's type
//   dx   = dy · W + Σ D∘(up · A)               [T, K], summed in fp32 (+ dx where accumulate)
//   dA  += upᵀ · (D∘x)                         fp32 [r, K]
//   dB  += scale · dyᵀ · low                   fp32 [N, r]
//   dW  += dyᵀ · x,  dbias += Σ_t dy           fp32, only where the base is trained
//
// A base is dense ([N, K], 16-bit or fp32), quantized in 4 bits and decoded on the fly, or absent.
// Where x is bf16 every operand enters the product as bf16: a 4-bit weight is bf16(code value ·
// block scale), an adapter is its bf16 copy. Where x is f32 nothing is rounded before the product.
// Sums over T, K or N run in an order fixed by the shapes alone: threads do not change a byte.
// Bound: |error| ≤ depth · u(fp32) · Σ|terms| + ½ ulp of the output, plus ½ ulp · Σ|·| for low and
// up.

#ifndef QLORA_KERNELS_OPS_LINEAR_H_
#define QLORA_KERNELS_OPS_LINEAR_H_

#include <vector>

#include "kernels/tensor.h"
#include "quant/spec.h"

namespace qlora::kernels {

// 4-bit weights as a backend keeps them: what Pack made of bitsandbytes' bytes, to be read only by
// that backend. Views are one row each. With double quantization `absmax` is u8 and
// `nested_absmax`, `offset` are given; without it `absmax` is f32 and they are empty.
struct QuantizedTensor {
  ConstTensor codes;          // u8 [1, ceil(N·K/2)]
  ConstTensor absmax;         // u8 or f32 [1, blocks]
  ConstTensor nested_absmax;  // f32 [1, groups]
  ConstTensor offset;         // f32 scalar
  ConstTensor map;            // f32 [1, 256]: the 8-bit code's values
  quant::QuantSpec spec;

  static void Visit(auto& q, auto&& f) {
    f("codes", q.codes), f("absmax", q.absmax), f("nested_absmax", q.nested_absmax);
    f("offset", q.offset), f("map", q.map);
  }
};

struct LinearBase {
  enum class Kind : uint8_t { kNone, kDense, kQuantized };
  Kind kind = Kind::kNone;
  int64_t out_features = 0;   // N
  int64_t in_features = 0;    // K
  ConstTensor dense;          // kDense: bf16, f16 or f32 [N, K]
  QuantizedTensor quantized;  // kQuantized: row-major [N, K], blocks run across rows

  static void Visit(auto& base, auto&& f) {
    f("dense", base.dense), QuantizedTensor::Visit(base.quantized, f);
  }
};

// Whether element (t, k) is kept is a function of (seed, step, micro-batch, key, t · K + k) alone,
// where t counts from the segment's first row: whoever else is in the batch changes nothing. See
// philox.h.
struct Dropout {
  float probability = 0.0f;  // [0, 1); 0: none, and `counter` is not read
  uint32_t key = 0;          // one number per adapted tensor
  ConstTensor counter;       // i32 [1, 4]: seed low, seed high, step, micro-batch
};

// The rows one adapter serves.
struct AdapterSegment {
  ConstTensor a;       // [r, K], x's type
  ConstTensor b;       // [N, r], x's type
  ConstTensor rows;    // i32 [1, 2]: first row, end row; empty: all live rows
  float share = 1.0f;  // of all rows that are its own, on average, for Flops() only
  float scale = 1.0f;
  Dropout dropout;
  ConstTensor given_low;  // forward's `low` where a norm has made it (FirstProduct), else empty
  bool IsLowGiven() const { return given_low.cols > 0; }
  static void Visit(auto& s, auto&& f) {
    f("a", s.a), f("b", s.b), f("rows", s.rows), f("dropout.counter", s.dropout.counter);
    f("given_low", s.given_low);
  }
};

// low = (D∘x) · Aᵀ of one adapter, alone: what the norm that makes x can make along with it
// (rms_norm.h).
struct FirstProduct {
  ConstTensor a;     // [r, K], x's type
  ConstTensor rows;  // i32 [1, 2] or empty, as in AdapterSegment
  Dropout dropout;
  Tensor low;  // x's type [T, r]
  static void Visit(auto& p, auto&& f) {
    f("a", p.a), f("rows", p.rows), f("dropout.counter", p.dropout.counter), f("low", p.low);
  }
};

// How a backend computes a linear op with its base; one that has no choice ignores it. Chosen
// before the plan is made, since workspaces depend on it. The results of two variants differ within
// the op's bound, those of one are always the same.
enum class LinearVariant : uint8_t {
  kFused,        // the weight is decoded inside the product
  kDequantized,  // the weight is written out into the workspace for the vendor's dense product
  kHopper,       // decoded inside a product by sm_90's own instructions (wgmma, TMA)
};
const char* NameOf(LinearVariant variant);  // "FUSED", ...

// From row to row of an activation with room for a `tail`, in elements: rows begin at multiples of
// a cache line of 16-bit elements, as they mostly do without it.
constexpr int64_t PitchWithTail(int64_t cols, int64_t tail) {
  constexpr int64_t kLineElements = 64;
  return tail == 0 ? cols : AlignUp(cols + tail, kLineElements);
}

// A `tail` of so many columns out of the room behind an input; empty where that has not so many.
inline Tensor TailWithin(const Tensor& room, int64_t columns) {
  return columns > 0 && columns <= room.cols ? Slice(room, 0, room.rows, 0, columns) : Tensor{};
}

struct LinearForward {
  ConstTensor x;  // bf16 or f32 [T, K]
  LinearBase base;
  ConstTensor bias;  // bf16, f16 or f32 [1, N], or empty
  LiveRows live_rows;
  std::vector<AdapterSegment> adapters;
  std::vector<Tensor> low;  // one per adapter: x's type [T, r]; empty where it is given
  Tensor y;                 // bf16 or f32 [T, N]
  LinearVariant variant = LinearVariant::kFused;
  // Scratch: Device::TailColumns(op) columns right behind those of x, in the same rows. Empty where
  // x has no room for them: the op then copies x into a larger workspace.
  Tensor tail;
  Tensor workspace;  // u8 [1, Workspace(op)]

  static constexpr const char* kName = "linear_forward";
  static void Visit(auto& op, auto&& f) {
    f("x", op.x), LinearBase::Visit(op.base, f), f("bias", op.bias), f("live_rows", op.live_rows);
    for (auto& segment : op.adapters) AdapterSegment::Visit(segment, f);
    for (auto& low : op.low) f("low", low);
    f("y", op.y), f("tail", op.tail), f("workspace", op.workspace);
  }
};

// `low` of adapter i, whoever has made it.
inline ConstTensor LowOf(const LinearForward& op, size_t i) {
  return op.adapters[i].IsLowGiven() ? op.adapters[i].given_low : ConstTensor(op.low[i]);
}
inline FirstProduct FirstProductOf(const LinearForward& op, size_t i) {
  const AdapterSegment& s = op.adapters[i];
  return {.a = s.a, .rows = s.rows, .dropout = s.dropout, .low = op.low[i]};
}

struct LinearBackwardInput {
  ConstTensor dy;  // bf16 or f32 [T, N]
  LinearBase base;
  LiveRows live_rows;
  std::vector<AdapterSegment> adapters;
  bool accumulate = false;  // dx += instead of dx =
  std::vector<Tensor> up;   // one per adapter: dy's type [T, r]
  Tensor dx;                // dy's type [T, K]; empty: only `up` is wanted
  LinearVariant variant = LinearVariant::kFused;
  Tensor tail;  // as in LinearForward, behind dy
  Tensor workspace;

  static constexpr const char* kName = "linear_backward_input";
  static void Visit(auto& op, auto&& f) {
    f("dy", op.dy), LinearBase::Visit(op.base, f), f("live_rows", op.live_rows);
    for (auto& segment : op.adapters) AdapterSegment::Visit(segment, f);
    for (auto& up : op.up) f("up", up);
    f("dx", op.dx), f("tail", op.tail), f("workspace", op.workspace);
  }
};

// Gradients of one adapter segment.
struct LinearBackwardAdapter {
  ConstTensor x;    // bf16 or f32 [T, K]
  ConstTensor dy;   // x's type [T, N]
  ConstTensor low;  // x's type [T, r]
  ConstTensor up;   // x's type [T, r]
  LiveRows live_rows;
  ConstTensor rows;  // i32 [1, 2] or empty, as in AdapterSegment
  float share = 1.0f;
  float scale = 1.0f;
  Dropout dropout;
  bool accumulate = true;
  Tensor da;  // f32 [r, K]
  Tensor db;  // f32 [N, r]
  Tensor workspace;

  static constexpr const char* kName = "linear_backward_adapter";
  static void Visit(auto& op, auto&& f) {
    f("x", op.x), f("dy", op.dy), f("low", op.low), f("up", op.up), f("live_rows", op.live_rows);
    f("rows", op.rows), f("dropout.counter", op.dropout.counter), f("da", op.da), f("db", op.db);
    f("workspace", op.workspace);
  }
};

// Gradients of a trained dense base.
struct LinearBackwardWeight {
  ConstTensor x;   // bf16 or f32 [T, K]
  ConstTensor dy;  // x's type [T, N]
  LiveRows live_rows;
  bool accumulate = true;
  Tensor dweight;  // f32 [N, K]
  Tensor dbias;    // f32 [1, N] or empty
  Tensor workspace;

  static constexpr const char* kName = "linear_backward_weight";
  static void Visit(auto& op, auto&& f) {
    f("x", op.x), f("dy", op.dy), f("live_rows", op.live_rows), f("dweight", op.dweight);
    f("dbias", op.dbias), f("workspace", op.workspace);
  }
};

// Bytes of a base as stored.
inline double BaseBytes(const LinearBase& base) {
  const double weights = double(base.out_features) * base.in_features;
  if (base.kind == LinearBase::Kind::kNone) return 0.0;
  if (base.kind == LinearBase::Kind::kDense) return weights * SizeOf(base.dense.dtype);
  const double blocks = weights / base.quantized.spec.block_size;
  return weights / 2 + (base.quantized.spec.double_quant ? blocks * (1 + 4.0 / 256) : blocks * 4);
}
inline double AdapterFlops(const std::vector<AdapterSegment>& adapters, const LinearBase& base,
                           int64_t rows) {
  double flops = 0;
  for (const AdapterSegment& s : adapters) {
    const int64_t first = s.IsLowGiven() ? 0 : base.in_features;
    flops += 2.0 * s.share * rows * s.a.rows * (first + base.out_features);
  }
  return flops;
}
inline double BaseFlops(const LinearBase& base, int64_t rows) {
  return base.kind == LinearBase::Kind::kNone
             ? 0.0
             : 2.0 * rows * double(base.out_features) * base.in_features;
}
inline double Flops(const LinearForward& op) {
  return BaseFlops(op.base, op.x.rows) + AdapterFlops(op.adapters, op.base, op.x.rows);
}
inline double Bytes(const LinearForward& op) {
  return BaseBytes(op.base) + double(op.x.Count()) * SizeOf(op.x.dtype) +
         double(op.y.Count()) * SizeOf(op.y.dtype);
}
inline double Flops(const LinearBackwardInput& op) {
  return BaseFlops(op.base, op.dy.rows) + AdapterFlops(op.adapters, op.base, op.dy.rows);
}
inline double Bytes(const LinearBackwardInput& op) {
  return BaseBytes(op.base) + double(op.dy.Count()) * SizeOf(op.dy.dtype) +
         double(op.dx.Count()) * SizeOf(op.dy.dtype) * (op.accumulate ? 2 : 1);
}
inline double Flops(const LinearBackwardAdapter& op) {
  return 2.0 * op.share * op.x.rows * op.low.cols * (op.x.cols + op.dy.cols);
}
inline double Bytes(const LinearBackwardAdapter& op) {
  return double(op.x.Count() + op.dy.Count()) * SizeOf(op.x.dtype) +
         8.0 * (op.da.Count() + op.db.Count());
}
inline double Flops(const LinearBackwardWeight& op) {
  return 2.0 * op.x.rows * double(op.x.cols) * op.dy.cols;
}
inline double Bytes(const LinearBackwardWeight& op) {
  return double(op.x.Count() + op.dy.Count()) * SizeOf(op.x.dtype) + 8.0 * op.dweight.Count();
}

}  // namespace qlora::kernels

#endif  // QLORA_KERNELS_OPS_LINEAR_H_
