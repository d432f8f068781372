#include "gpu/tensor_map.h"

#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include "absl/strings/str_cat.h"

namespace qlora::gpu {
namespace {

constexpr int kColumns = 64;  // of a box: 128 bytes, the swizzle's width

// The driver's encoder, which the runtime library does not wrap; null where the driver is older
// than CUDA 12.0.
PFN_cuTensorMapEncodeTiled_v12000 Encoder() {
  static const auto encoder = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                               12000, cudaEnableDefault, &found);
#else
    const cudaError_t error =
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
    if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) {
      cudaGetLastError();  // must not be reported again by the next launch
      function = nullptr;
    }
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  return encoder;
}

}  // namespace

TensorMap MakeTensorMap(Launcher& launcher, const char* name, const kernels::ConstTensor& matrix,
                        int box_rows) {
  TensorMap map = {};
  const PFN_cuTensorMapEncodeTiled_v12000 encode = Encoder();
  if (encode == nullptr) {
    launcher.Fail(absl::UnimplementedError(
        absl::StrCat(name, ": the NVIDIA driver has no cuTensorMapEncodeTiled")));
    return map;
  }
  const cuuint64_t sizes[2] = {cuuint64_t(matrix.cols), cuuint64_t(matrix.rows)};
  // One row has no next one: its pitch may be anything, but the driver wants a multiple of 16.
  const int64_t pitch = matrix.rows > 1 ? matrix.pitch : (matrix.cols + 7) / 8 * 8;
  const cuuint64_t strides[1] = {cuuint64_t(pitch) * 2};
  const cuuint32_t box[2] = {kColumns, cuuint32_t(box_rows)};
  const cuuint32_t element_strides[2] = {1, 1};
  const CUresult result = encode(
      &map.native, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(matrix.data), sizes,
      strides, box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    launcher.Fail(absl::InternalError(absl::StrCat(
        name, ": cuTensorMapEncodeTiled: error ", int(result), " for [", matrix.rows, ", ",
        matrix.cols, "], pitch ", matrix.pitch, ", boxes of ", box_rows, " rows")));
  }
  return map;
}

}  // namespace qlora::gpu
