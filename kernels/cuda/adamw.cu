#include <algorithm>

#include "kernels/cuda/dynamic_code.h"
#include "kernels/cuda/elements.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/warp.h"
#include "kernels/ops/adamw.h"

namespace qlora::kernels::cuda {
namespace {

// One thread an element; a CUDA block takes kBlocks parameter blocks one after another. Their
// segments and places are found at the start, side by side.
constexpr int kThreads = int(kParameterBlock);
constexpr int kBlocks = 8;

// Windows of a state: `blocks` parameter blocks a row.
struct Windows {
  uint32_t blocks;
  int64_t pitch;  // elements
};

struct Arguments {
  const float* gradient;
  const uint8_t* segments;
  int segment_count;
  int64_t segment_pitch;
  const float* scalars;
  int64_t scalar_pitch;
  const float* gradient_scale;
  int64_t scale_pitch;
  const int32_t* skip;
  double beta1, beta2;
  float epsilon;
  int64_t first_block, n;
  float* parameter;
  Windows parameter_rows, m_rows, v_rows, m_absmax_rows, v_absmax_rows;
  void* m;
  void* v;
  float* m_absmax;
  float* v_absmax;
  uint16_t* compute;  // may be null
};

// The table is bytes, aligned to nothing.
QLORA_DEVICE uint32_t WordAt(const uint8_t* bytes) {
  return uint32_t(bytes[0]) | uint32_t(bytes[1]) << 8 | uint32_t(bytes[2]) << 16 |
         uint32_t(bytes[3]) << 24;
}

// What a parameter block's elements share.
struct BlockScalars {
  float gradient_scale, keep, step, root_correction2;
  int64_t parameter, m, v;     // where its first element lies,
  int64_t m_absmax, v_absmax;  // and its scales
};

// Where block `b` of the range begins in a state that has `per_block` values of it.
QLORA_DEVICE int64_t PlaceOf(uint32_t b, const Windows& windows, int per_block) {
  const uint32_t row = b / windows.blocks;
  return row * windows.pitch + int64_t(b - row * windows.blocks) * per_block;
}

QLORA_DEVICE BlockScalars ScalarsOf(const Arguments& a, uint32_t b) {
  const int64_t block = a.first_block + b;
  // The last segment that begins at or before the block.
  int low = 0, high = a.segment_count;
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    if (int32_t(WordAt(a.segments + middle * a.segment_pitch)) <= block) {
      low = middle;
    } else {
      high = middle;
    }
  }
  const uint8_t* row = a.segments + low * a.segment_pitch;
  const float rate_factor = gpu::FloatOf(WordAt(row + 4));
  const float weight_decay = gpu::FloatOf(WordAt(row + 8));
  const int64_t adapter = int32_t(WordAt(row + 12));
  const float* scalars = a.scalars + adapter * a.scalar_pitch;
  // In fp64, rounded once: so they cost no accuracy.
  const double rate = double(scalars[UpdateScalars::kLearningRate]) * rate_factor;
  return {a.gradient_scale[adapter * a.scale_pitch],
          float(1.0 - rate * weight_decay),
          float(rate / scalars[UpdateScalars::kBiasCorrection1]),
          float(sqrt(double(scalars[UpdateScalars::kBiasCorrection2]))),
          PlaceOf(b, a.parameter_rows, kThreads),
          PlaceOf(b, a.m_rows, kThreads),
          PlaceOf(b, a.v_rows, kThreads),
          PlaceOf(b, a.m_absmax_rows, 1),
          PlaceOf(b, a.v_absmax_rows, 1)};
}

struct CodeTables {
  CodeTable map, next;
};

// p, m, v of one element; new moments are returned through m and v.
QLORA_DEVICE void Update(const Arguments& a, const BlockScalars& s, int64_t i, float* m, float* v) {
  float* const parameter = a.parameter + s.parameter + gpu::ThreadX();
  const float beta1 = float(a.beta1), rest1 = float(1.0 - a.beta1);
  const float beta2 = float(a.beta2), rest2 = float(1.0 - a.beta2);
  const float g = a.gradient[i] * s.gradient_scale;
  const float new_m = beta1 * *m + rest1 * g;
  const float new_v = beta2 * *v + rest2 * (g * g);
  const float p = *parameter * s.keep;
  const float new_p = p - s.step * (new_m / (sqrtf(new_v) / s.root_correction2 + a.epsilon));
  *parameter = new_p;
  if (a.compute != nullptr) a.compute[i] = gpu::ToBf16(new_p);
  *m = new_m;
  *v = new_v;
}

QLORA_DEVICE void FindScalars(const Arguments& a, gpu::Shared<BlockScalars> scalars) {
  const int64_t block = gpu::BlockX() * kBlocks + gpu::ThreadX();
  if (gpu::ThreadX() < kBlocks && block * kThreads < a.n) {
    scalars[gpu::ThreadX()] = ScalarsOf(a, uint32_t(block));
  }
}

QLORA_KERNEL void AdamWFloat(Arguments a) {
  if (*a.skip != 0) return;
  gpu::SharedMemory memory;
  gpu::Shared<BlockScalars> scalars = memory.Take<BlockScalars>(kBlocks);
  FindScalars(a, scalars);
  gpu::SyncThreads();
  float* const m = static_cast<float*>(a.m);
  float* const v = static_cast<float*>(a.v);
  for (int b = 0; b < kBlocks; ++b) {
    const int64_t i = (gpu::BlockX() * kBlocks + b) * kThreads + gpu::ThreadX();
    if (i >= a.n) return;
    const BlockScalars s = scalars[b];
    Update(a, s, i, m + s.m + gpu::ThreadX(), v + s.v + gpu::ThreadX());
  }
}

// value / absmax, encoded; an all-zero block keeps absmax 0 and the codes of 0.
QLORA_DEVICE uint8_t EncodeState(float value, float absmax, gpu::Shared<float> next) {
  return EncodeDynamic(next, value / (absmax > 0.0f ? absmax : 1.0f));
}

QLORA_KERNEL void AdamWCoded(Arguments a, CodeTables m_tables, CodeTables v_tables) {
  if (*a.skip != 0) return;
  gpu::SharedMemory memory;
  gpu::Shared<BlockScalars> scalars = memory.Take<BlockScalars>(kBlocks);
  gpu::Shared<float> m_map = memory.Take<float>(256), m_next = memory.Take<float>(256);
  gpu::Shared<float> v_map = memory.Take<float>(256), v_next = memory.Take<float>(256);
  gpu::Shared<float> partial = memory.Take<float>(kThreads / 32);
  FillTable(m_tables.map, m_map);
  FillTable(m_tables.next, m_next);
  FillTable(v_tables.map, v_map);
  FillTable(v_tables.next, v_next);
  FindScalars(a, scalars);
  gpu::SyncThreads();
  uint8_t* const m_codes = static_cast<uint8_t*>(a.m);
  uint8_t* const v_codes = static_cast<uint8_t*>(a.v);
  for (int b = 0; b < kBlocks; ++b) {
    const int64_t block = gpu::BlockX() * kBlocks + b;
    if (block * kThreads >= a.n) return;  // all threads together
    const int64_t i = block * kThreads + gpu::ThreadX();
    const bool live = i < a.n;
    const BlockScalars s = scalars[b];
    uint8_t* const m_code = m_codes + s.m + gpu::ThreadX();
    uint8_t* const v_code = v_codes + s.v + gpu::ThreadX();
    float m = 0.0f, v = 0.0f;
    if (live) {
      const float m_value = m_map[*m_code], v_value = v_map[*v_code];
      m = m_value * a.m_absmax[s.m_absmax];
      v = v_value * a.v_absmax[s.v_absmax];
      Update(a, s, i, &m, &v);
    }
    // Its barriers stand between the reads of the old absmax and the writes of the new one.
    const float m_absmax = BlockMax(fabsf(m), partial), v_absmax = BlockMax(fabsf(v), partial);
    if (gpu::ThreadX() == 0) {
      a.m_absmax[s.m_absmax] = m_absmax;
      a.v_absmax[s.v_absmax] = v_absmax;
    }
    if (!live) continue;
    *m_code = EncodeState(m, m_absmax, m_next);
    *v_code = EncodeState(v, v_absmax, v_next);
  }
}

}  // namespace

void Run(const AdamW& op, const Context& context) {
  Arguments a = {};
  a.gradient = static_cast<const float*>(op.gradient.data);
  a.segments = static_cast<const uint8_t*>(op.segments.data);
  a.segment_count = int(op.segments.rows);
  a.segment_pitch = op.segments.pitch;
  a.scalars = static_cast<const float*>(op.scalars.data);
  a.scalar_pitch = op.scalars.pitch;
  a.gradient_scale = static_cast<const float*>(op.gradient_scale.data);
  a.scale_pitch = op.gradient_scale.pitch;
  a.skip = static_cast<const int32_t*>(op.skip.data);
  a.beta1 = op.beta1;
  a.beta2 = op.beta2;
  a.epsilon = op.epsilon;
  a.first_block = op.first_block;
  a.n = op.gradient.Count();
  // Never 0, which the kernel would divide by: empty views have no columns.
  const auto rows = [](const Tensor& t, int64_t per_block) {
    return Windows{uint32_t(std::max<int64_t>(CeilDiv(t.cols, per_block), 1)), t.pitch};
  };
  a.parameter_rows = rows(op.parameter, kParameterBlock);
  a.m_rows = rows(op.m, kParameterBlock);
  a.v_rows = rows(op.v, kParameterBlock);
  a.m_absmax_rows = rows(op.m_absmax, 1);
  a.v_absmax_rows = rows(op.v_absmax, 1);
  a.parameter = static_cast<float*>(op.parameter.data);
  a.m = op.m.data;
  a.v = op.v.data;
  a.m_absmax = static_cast<float*>(op.m_absmax.data);
  a.v_absmax = static_cast<float*>(op.v_absmax.data);
  a.compute = static_cast<uint16_t*>(op.compute.data);
  gpu::LaunchShape shape = {.blocks_x = CeilDiv(a.n, kThreads * kBlocks),
                            .threads = kThreads,
                            .shared_bytes = kBlocks * int64_t{sizeof(BlockScalars)}};
  if (op.m.dtype != DType::kU8) {
    gpu::Launch(context.launcher, AdamW::kName, &AdamWFloat, shape, a);
    return;
  }
  shape.shared_bytes += (4 * 256 + kThreads / 32) * 4;
  const auto tables = [](const DynamicCode& code) {
    return CodeTables{TableOf(code.map), TableOf(code.next)};
  };
  gpu::Launch(context.launcher, AdamW::kName, &AdamWCoded, shape, a, tables(SignedDynamicCode()),
              tables(UnsignedDynamicCode()));
}

}  // namespace qlora::kernels::cuda
