// What is timed on a GPU: every op at the shapes of training steps.

#ifndef QLORA_BENCH_GPU_CASES_H_
#define QLORA_BENCH_GPU_CASES_H_

#include <functional>
#include <string>
#include <vector>

#include "bench/gpu_operands.h"
#include "kernels/op_list.h"

namespace qlora::bench {

struct GpuCase {
  std::string name;  // e.g. "linear_forward/nf4_r16/M2048/4096x14336": rows, in x out features
  // The op over operands of its own; without a workspace.
  std::function<kernels::Op(GpuOperands&)> make;
};

struct ModelShape {
  std::string name;
  int64_t hidden, intermediate, query_heads, kv_heads, head_size, vocabulary;
  bool head_norms;
};
struct BenchShapes {
  struct Features {
    int64_t in, out;
  };
  std::vector<Features> weights;
  std::vector<int64_t> rows;  // of activations; backward for those from `backward_rows` on
  int64_t backward_rows;
  std::vector<ModelShape> models;
  int64_t tokens;                 // a micro-batch's
  std::vector<int64_t> contexts;  // lengths of the one document that attention sees
  int64_t parameters;             // trained ones
  int64_t chunk_rows;             // of the cross-entropy
};
// Llama-3-8B's and Qwen3-0.6B's, 2 x 2048 tokens, r = 16 on all linear layers.
BenchShapes TrainingShapes();

// Every op of op_list.h is among them.
std::vector<GpuCase> GpuCases(const BenchShapes& shapes);

// The dense bf16 product whose rate is the mark for products.
GpuCase DenseProduct(int64_t rows, int64_t in, int64_t out);

}  // namespace qlora::bench

#endif  // QLORA_BENCH_GPU_CASES_H_
