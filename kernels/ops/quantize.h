// 4-bit blockwise quantization and its inverse, and the move between bitsandbytes' bytes and a
// backend's packing. The numbers are those of quant/reference_quantizer.h, bit for bit, on every
// backend.

#ifndef QLORA_KERNELS_OPS_QUANTIZE_H_
#define QLORA_KERNELS_OPS_QUANTIZE_H_

#include "kernels/ops/linear.h"

namespace qlora::kernels {

// What quantizing writes: bitsandbytes' bytes. Fields as in QuantizedTensor.
struct QuantizedOutput {
  Tensor codes, absmax, nested_absmax, offset;
  static void Visit(auto& q, auto&& f) {
    f("codes", q.codes), f("absmax", q.absmax), f("nested_absmax", q.nested_absmax);
    f("offset", q.offset);
  }
};

struct Quantize {
  ConstTensor w;  // bf16, f16 or f32 [N, K], contiguous
  quant::QuantSpec spec;
  QuantizedOutput out;
  Tensor nonfinite;  // i32 scalar: how many elements of w are NaN or infinite; the codes are then
                     // worthless
  Tensor workspace;  // u8 [1, Workspace(op)]

  static constexpr const char* kName = "quantize";
  static void Visit(auto& op, auto&& f) {
    f("w", op.w), QuantizedOutput::Visit(op.out, f), f("nonfinite", op.nonfinite);
    f("workspace", op.workspace);
  }
};

struct Dequantize {
  QuantizedTensor q;  // bitsandbytes' bytes
  Tensor w;           // bf16, f16 or f32 [N, K], contiguous

  static constexpr const char* kName = "dequantize";
  static void Visit(auto& op, auto&& f) { QuantizedTensor::Visit(op.q, f), f("w", op.w); }
};

// bitsandbytes' bytes → the backend's packing, and back; both lossless. Sizes are the same on both
// sides. On the CPU the packing is bitsandbytes' own.
struct Pack {
  QuantizedTensor from;
  int64_t rows = 0, cols = 0;  // of the weight
  QuantizedOutput to;

  static constexpr const char* kName = "pack";
  static void Visit(auto& op, auto&& f) {
    QuantizedTensor::Visit(op.from, f), QuantizedOutput::Visit(op.to, f);
  }
};

struct Unpack {
  QuantizedTensor from;
  int64_t rows = 0, cols = 0;
  QuantizedOutput to;

  static constexpr const char* kName = "unpack";
  static void Visit(auto& op, auto&& f) {
    QuantizedTensor::Visit(op.from, f), QuantizedOutput::Visit(op.to, f);
  }
};

inline double Flops(const Quantize& op) { return 3.0 * op.w.Count(); }
inline double Bytes(const Quantize& op) {
  return double(op.w.Count()) * (SizeOf(op.w.dtype) + 0.5) + op.out.absmax.Count() * 4.0;
}
inline double Flops(const Dequantize& op) { return double(op.w.Count()); }
inline double Bytes(const Dequantize& op) {
  return double(op.w.Count()) * (SizeOf(op.w.dtype) + 0.5) + op.q.absmax.Count() * 1.0;
}
inline double Flops(const Pack&) { return 0.0; }
inline double Bytes(const Pack& op) { return 2.0 * op.from.codes.Count(); }
inline double Flops(const Unpack&) { return 0.0; }
inline double Bytes(const Unpack& op) { return 2.0 * op.from.codes.Count(); }

}  // namespace qlora::kernels

#endif  // QLORA_KERNELS_OPS_QUANTIZE_H_
