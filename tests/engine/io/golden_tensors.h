// The tensors of tests/golden/io/writer.safetensors, as make_golden.py fills them.
#ifndef QLORA_TESTS_ENGINE_IO_GOLDEN_TENSORS_H_
#define QLORA_TESTS_ENGINE_IO_GOLDEN_TENSORS_H_

#include <string>
#include <utility>
#include <vector>

#include "engine/io/safetensors_writer.h"

namespace qlora::tests {

struct OwnedTensor {
  engine::TensorSpec spec;
  std::string bytes;
};

// Byte i of a tensor: 7 i + the sum of its name's bytes, modulo 251.
inline OwnedTensor Filled(engine::TensorSpec spec) {
  int sum = 0;
  for (unsigned char c : spec.name) sum += c;
  std::string bytes(static_cast<size_t>(*engine::TensorBytes(spec.dtype, spec.shape, spec.name)),
                    0);
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<char>((static_cast<int>(i) * 7 + sum) % 251);
  }
  return {std::move(spec), std::move(bytes)};
}

inline std::vector<OwnedTensor> GoldenTensors() {
  using engine::Dtype;
  const std::vector<engine::TensorSpec> specs = {
      {"z.bool", Dtype::kBool, {3}},
      {"b.u8", Dtype::kU8, {2, 3}},
      {"a.u8", Dtype::kU8, {5}},
      {"i8", Dtype::kI8, {1}},
      {"e5m2", Dtype::kF8E5M2, {2}},
      {"e4m3", Dtype::kF8E4M3, {3}},
      {"e8m0", Dtype::kF8E8M0, {4}},
      {"e4m3fnuz", Dtype::kF8E4M3FNUZ, {5}},
      {"e5m2fnuz", Dtype::kF8E5M2FNUZ, {6}},
      {"i16", Dtype::kI16, {2}},
      {"u16", Dtype::kU16, {3}},
      {"f16", Dtype::kF16, {2, 2}},
      {"model.layers.10.w", Dtype::kBF16, {4, 3}},
      {"model.layers.2.w", Dtype::kBF16, {1, 3}},
      {"i32", Dtype::kI32, {2}},
      {"u32", Dtype::kU32, {1}},
      {"scalar", Dtype::kF32, {}},
      {"empty", Dtype::kF32, {0, 4}},
      {"empty2", Dtype::kF32, {2, 0}},
      {"c64", Dtype::kC64, {2}},
      {"f64", Dtype::kF64, {2}},
      {"i64", Dtype::kI64, {1}},
      {"u64", Dtype::kU64, {2}},
      {"quote\"back\\slash", Dtype::kF32, {1}},
      {"\xc3\xa4\xe4\xb8\xad\xf0\x9f\x98\x80", Dtype::kF32, {1}},
  };
  std::vector<OwnedTensor> tensors;
  for (const engine::TensorSpec& spec : specs) tensors.push_back(Filled(spec));
  return tensors;
}

// Borrows the bytes.
inline std::vector<engine::TensorData> AsData(const std::vector<OwnedTensor>& tensors) {
  std::vector<engine::TensorData> data;
  for (const OwnedTensor& tensor : tensors) {
    data.push_back({tensor.spec,
                    {reinterpret_cast<const uint8_t*>(tensor.bytes.data()), tensor.bytes.size()}});
  }
  return data;
}

}  // namespace qlora::tests

#endif  // QLORA_TESTS_ENGINE_IO_GOLDEN_TENSORS_H_
