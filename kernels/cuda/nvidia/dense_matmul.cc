#include "kernels/cuda/dense_matmul.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <array>
#include <map>
#include <mutex>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace qlora::gpu {
namespace {

// The library's functions that are used, by the types of its header.
struct Library {
  decltype(&cublasLtCreate) Create;
  decltype(&cublasLtGetVersion) GetVersion;
  decltype(&cublasLtMatmulDescCreate) MatmulDescCreate;
  decltype(&cublasLtMatmulDescDestroy) MatmulDescDestroy;
  decltype(&cublasLtMatmulDescSetAttribute) MatmulDescSetAttribute;
  decltype(&cublasLtMatrixLayoutCreate) MatrixLayoutCreate;
  decltype(&cublasLtMatrixLayoutDestroy) MatrixLayoutDestroy;
  decltype(&cublasLtMatmulPreferenceCreate) MatmulPreferenceCreate;
  decltype(&cublasLtMatmulPreferenceDestroy) MatmulPreferenceDestroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) MatmulPreferenceSetAttribute;
  decltype(&cublasLtMatmulAlgoGetHeuristic) MatmulAlgoGetHeuristic;
  decltype(&cublasLtMatmul) Matmul;
  cublasLtHandle_t handle = nullptr;
};

constexpr std::array kNames = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so",
                               "/usr/local/cuda/lib64/libcublasLt.so"};

absl::Status Load(Library* library) {
  void* file = nullptr;
  for (const char* name : kNames) {
    file = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (file != nullptr) break;
  }
  if (file == nullptr) {
    return absl::NotFoundError(absl::StrCat(
        "cuBLASLt is not on this machine: none of ", absl::StrJoin(kNames, ", "),
        " can be loaded (it comes with the CUDA Toolkit; LD_LIBRARY_PATH says where)"));
  }
  const char* missing = nullptr;
  const auto find = [&](auto* function, const char* name) {
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(dlsym(file, name));
    if (*function == nullptr) missing = name;
  };
  find(&library->Create, "cublasLtCreate");
  find(&library->GetVersion, "cublasLtGetVersion");
  find(&library->MatmulDescCreate, "cublasLtMatmulDescCreate");
  find(&library->MatmulDescDestroy, "cublasLtMatmulDescDestroy");
  find(&library->MatmulDescSetAttribute, "cublasLtMatmulDescSetAttribute");
  find(&library->MatrixLayoutCreate, "cublasLtMatrixLayoutCreate");
  find(&library->MatrixLayoutDestroy, "cublasLtMatrixLayoutDestroy");
  find(&library->MatmulPreferenceCreate, "cublasLtMatmulPreferenceCreate");
  find(&library->MatmulPreferenceDestroy, "cublasLtMatmulPreferenceDestroy");
  find(&library->MatmulPreferenceSetAttribute, "cublasLtMatmulPreferenceSetAttribute");
  find(&library->MatmulAlgoGetHeuristic, "cublasLtMatmulAlgoGetHeuristic");
  find(&library->Matmul, "cublasLtMatmul");
  if (missing != nullptr) {
    return absl::NotFoundError(absl::StrCat("cuBLASLt on this machine has no ", missing));
  }
  if (const cublasStatus_t s = library->Create(&library->handle); s != CUBLAS_STATUS_SUCCESS) {
    return absl::InternalError(absl::StrCat("cublasLtCreate: status ", int(s)));
  }
  return absl::OkStatus();
}

Library& Lt() {
  static Library library;
  return library;
}

// Descriptors of one product; released with it.
class Descriptors {
 public:
  explicit Descriptors(const DenseMatmul& p) {
    // The library counts columns first: it computes cᵀ = op(b)ᵀ · aᵀ.
    Check(Lt().MatmulDescCreate(&matmul, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t first = p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t second = CUBLAS_OP_N;
    Set(CUBLASLT_MATMUL_DESC_TRANSA, first);
    Set(CUBLASLT_MATMUL_DESC_TRANSB, second);
    if (p.bias) {
      Set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      Set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias.data);
    }
    Check(Lt().MatrixLayoutCreate(&b, CUDA_R_16BF, p.b.cols, p.b.rows, p.b.pitch));
    Check(Lt().MatrixLayoutCreate(&a, CUDA_R_16BF, p.a.cols, p.a.rows, p.a.pitch));
    Check(Lt().MatrixLayoutCreate(&c, CUDA_R_16BF, p.c.cols, p.c.rows, p.c.pitch));
  }
  Descriptors(const Descriptors&) = delete;
  ~Descriptors() {
    if (matmul != nullptr) Lt().MatmulDescDestroy(matmul);
    for (const cublasLtMatrixLayout_t layout : {a, b, c}) {
      if (layout != nullptr) Lt().MatrixLayoutDestroy(layout);
    }
  }

  cublasLtMatmulDesc_t matmul = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
  cublasStatus_t status = CUBLAS_STATUS_SUCCESS;  // the first that is not success

 private:
  void Check(cublasStatus_t s) {
    if (status == CUBLAS_STATUS_SUCCESS) status = s;
  }
  template <class T>
  void Set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    if (matmul != nullptr) {
      Check(Lt().MatmulDescSetAttribute(matmul, attribute, &value, sizeof(value)));
    }
  }
};

// All that the choice of an algorithm may depend on.
using Shape = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, bool, bool, bool>;

Shape ShapeOf(const DenseMatmul& p) {
  return {p.c.rows,  p.c.cols,      p.a.cols,     p.a.pitch,   p.b.pitch,
          p.c.pitch, p.transpose_b, p.accumulate, bool(p.bias)};
}

absl::Status Failed(cublasStatus_t status, const DenseMatmul& p) {
  return absl::InternalError(absl::StrCat("cuBLASLt: status ", int(status), " for a product [",
                                          p.c.rows, ", ", p.a.cols, "] x [", p.a.cols, ", ",
                                          p.c.cols, "]"));
}

// The library's first proposal for a shape, asked for once. Sums that are split are put together
// in fp32 in a step of their own: never in an order that timing decides.
absl::StatusOr<cublasLtMatmulAlgo_t> AlgorithmFor(const DenseMatmul& p, const Descriptors& d) {
  static std::mutex mutex;
  static std::map<Shape, cublasLtMatmulAlgo_t> algorithms;
  const std::lock_guard lock(mutex);
  const Shape shape = ShapeOf(p);
  if (const auto it = algorithms.find(shape); it != algorithms.end()) return it->second;

  cublasLtMatmulPreference_t preference = nullptr;
  cublasStatus_t status = Lt().MatmulPreferenceCreate(&preference);
  if (status != CUBLAS_STATUS_SUCCESS) return Failed(status, p);
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    if (status != CUBLAS_STATUS_SUCCESS) return;
    status = Lt().MatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value));
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t(kDenseMatmulWorkspaceBytes));
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      uint32_t(CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  const uint32_t alignment = 16;
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment);
  cublasLtMatmulHeuristicResult_t result = {};
  int found = 0;
  if (status == CUBLAS_STATUS_SUCCESS) {
    status = Lt().MatmulAlgoGetHeuristic(Lt().handle, d.matmul, d.b, d.a, d.c, d.c, preference, 1,
                                         &result, &found);
  }
  Lt().MatmulPreferenceDestroy(preference);
  if (status != CUBLAS_STATUS_SUCCESS || found == 0) {
    return Failed(status == CUBLAS_STATUS_SUCCESS ? CUBLAS_STATUS_NOT_SUPPORTED : status, p);
  }
  return algorithms[shape] = result.algo;
}

}  // namespace

absl::Status LoadDenseMatmul() {
  static const absl::Status status = Load(&Lt());
  return status;
}

std::string DenseMatmulVersion() {
  const size_t version = Lt().GetVersion();
  return absl::StrCat("cuBLASLt ", version / 10000, ".", version / 100 % 100, ".", version % 100);
}

void RunDenseMatmul(Launcher& launcher, const char* name, const DenseMatmul& p) {
  if (!launcher.status().ok() || p.c.rows == 0 || p.c.cols == 0) return;
  const Descriptors d(p);
  const auto fail = [&](const absl::Status& s) {
    launcher.Fail(absl::Status(s.code(), absl::StrCat(name, ": ", s.message())));
  };
  if (d.status != CUBLAS_STATUS_SUCCESS) return fail(Failed(d.status, p));
  const absl::StatusOr<cublasLtMatmulAlgo_t> algorithm = AlgorithmFor(p, d);
  if (!algorithm.ok()) return fail(algorithm.status());
  const float alpha = p.alpha, beta = p.accumulate ? 1.0f : 0.0f;
  const cublasStatus_t status =
      Lt().Matmul(Lt().handle, d.matmul, &alpha, p.b.data, d.b, p.a.data, d.a, &beta, p.c.data, d.c,
                  p.c.data, d.c, &*algorithm, p.workspace, size_t(kDenseMatmulWorkspaceBytes),
                  reinterpret_cast<cudaStream_t>(launcher.stream()));
  if (status != CUBLAS_STATUS_SUCCESS) fail(Failed(status, p));
}

}  // namespace qlora::gpu
