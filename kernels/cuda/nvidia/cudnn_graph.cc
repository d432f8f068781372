#include "kernels/cuda/nvidia/cudnn_graph.h"

#include <dlfcn.h>

#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace cudnn_frontend {
// The frontend finds the library's functions here.
void* cudnn_dlhandle = nullptr;
}  // namespace cudnn_frontend

namespace qlora::gpu {
namespace {

namespace fe = cudnn_frontend;
using fe::graph::Tensor_attributes;
using TensorPointer = std::shared_ptr<Tensor_attributes>;

constexpr std::array kNames = {"libcudnn.so.9", "/usr/local/cuda/lib64/libcudnn.so.9"};
// Packed sequences with grouped heads, also empty ones; 9.10 has faults that NVIDIA lists.
constexpr size_t kOldestVersion = 91100;

absl::Status Load() {
  for (const char* name : kNames) {
    if (fe::cudnn_dlhandle == nullptr) fe::cudnn_dlhandle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  }
  if (fe::cudnn_dlhandle == nullptr) {
    return absl::NotFoundError(absl::StrCat("cuDNN 9 is not on this machine: none of ",
                                            absl::StrJoin(kNames, ", "),
                                            " can be loaded (LD_LIBRARY_PATH says where)"));
  }
  if (dlsym(fe::cudnn_dlhandle, "cudnnGetVersion") == nullptr) {
    return absl::NotFoundError("libcudnn.so.9 on this machine has no cudnnGetVersion");
  }
  if (fe::detail::get_backend_version() < kOldestVersion) {
    return absl::NotFoundError(absl::StrCat("cuDNN on this machine is ", CudnnVersion(),
                                            "; packed sequences need 9.11 or later"));
  }
  return absl::OkStatus();
}

class Builder {
 public:
  explicit Builder(const SdpaProblem& problem)
      : p_(problem), graph_(std::make_shared<fe::graph::Graph>()) {}

  std::shared_ptr<fe::graph::Graph> Build(int sm) {
    graph_->set_sm_version(sm)
        .set_io_data_type(fe::DataType_t::BFLOAT16)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
    lengths_ = graph_->tensor(Integers("lengths", kLengths, p_.documents));
    p_.backward ? AddBackward() : AddForward();
    return graph_;
  }

 private:
  static Tensor_attributes Integers(const char* name, int64_t id, int64_t count) {
    return Tensor_attributes()
        .set_name(name)
        .set_uid(id)
        .set_dim({count, 1, 1, 1})
        .set_stride({1, 1, 1, 1})
        .set_data_type(fe::DataType_t::INT32);
  }

  // Sizes and strides of an operand: documents, heads, tokens, elements. Where a document begins is
  // in its table, so that the first stride counts for nothing.
  void Describe(SdpaOperand o, Tensor_attributes* tensor) {
    const bool is_lse = o == kLse;
    const bool is_kv = o == kK || o == kV || o == kDk || o == kDv;
    const int64_t width = is_lse ? 1 : p_.head_size;
    tensor->set_uid(o)
        .set_dim({p_.documents, is_kv ? p_.kv_heads : p_.query_heads, p_.tokens, width})
        .set_stride({p_.tokens * p_.pitch[o], width, p_.pitch[o], 1})
        .set_ragged_offset(graph_->tensor(Integers("begins", kBegins + o, p_.documents + 1)))
        .set_data_type(is_lse ? fe::DataType_t::FLOAT : fe::DataType_t::BFLOAT16);
  }
  TensorPointer Input(SdpaOperand o, const char* name) {
    Tensor_attributes tensor;
    tensor.set_name(name);
    Describe(o, &tensor);
    return graph_->tensor(tensor);
  }
  void Output(SdpaOperand o, const TensorPointer& tensor) {
    Describe(o, tensor.get());
    tensor->set_output(true);
  }

  template <class Options>
  Options Common(const char* name) {
    Options options;
    options.set_name(name)
        .set_attn_scale(p_.scale)
        .set_padding_mask(true)
        .set_seq_len_q(lengths_)
        .set_seq_len_kv(lengths_)
        .set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT)
        .set_diagonal_band_right_bound(0)
        .set_max_total_seq_len_q(p_.tokens)
        .set_max_total_seq_len_kv(p_.tokens);
    if (p_.window > 0) options.set_diagonal_band_left_bound(int(p_.window));
    return options;
  }
  void AddForward() {
    auto options = Common<fe::graph::SDPA_attributes>("attention_forward");
    options.set_generate_stats(true);
    const auto [o, lse] = graph_->sdpa(Input(kQ, "q"), Input(kK, "k"), Input(kV, "v"), options);
    Output(kO, o);
    Output(kLse, lse);
  }
  void AddBackward() {
    auto options = Common<fe::graph::SDPA_backward_attributes>("attention_backward");
    options.set_deterministic_algorithm(true);
    const auto [dq, dk, dv] =
        graph_->sdpa_backward(Input(kQ, "q"), Input(kK, "k"), Input(kV, "v"), Input(kO, "o"),
                              Input(kDout, "dout"), Input(kLse, "lse"), options);
    Output(kDq, dq);
    Output(kDk, dk);
    Output(kDv, dv);
  }

  const SdpaProblem& p_;
  const std::shared_ptr<fe::graph::Graph> graph_;
  TensorPointer lengths_;
};

}  // namespace

absl::Status LoadCudnn() {
  static const absl::Status* const kLoaded = new absl::Status(Load());
  return *kLoaded;
}

std::string CudnnVersion() {
  const size_t version = fe::detail::get_backend_version();
  return absl::StrCat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

absl::StatusOr<std::shared_ptr<fe::graph::Graph>> SdpaGraph(const SdpaProblem& problem, int sm) {
  const auto graph = Builder(problem).Build(sm);
  if (fe::error_t error = graph->validate(); error.is_bad()) {
    return absl::UnimplementedError(
        absl::StrCat("cuDNN ", CudnnVersion(), " refuses this attention: ", error.get_message()));
  }
  return graph;
}

}  // namespace qlora::gpu
