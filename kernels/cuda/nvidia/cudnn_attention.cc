#include "kernels/cuda/cudnn_attention.h"

#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/nvidia/cudnn_graph.h"

namespace qlora::gpu {
namespace {

namespace fe = cudnn_frontend;

// One handle and a plan for each problem, for the life of the process.
class Library {
 public:
  absl::StatusOr<int64_t> Prepare(const SdpaProblem& problem, const Properties& card) {
    const std::lock_guard lock(mutex_);
    const auto [plan, is_new] = plans_.try_emplace(problem);
    if (is_new) plan->second = Build(problem, card);
    if (!plan->second.ok()) return plan->second.status();
    return (*plan->second)->workspace_bytes;
  }

  absl::Status Run(const SdpaProblem& problem, const SdpaAddresses& addresses, Stream stream) {
    const std::lock_guard lock(mutex_);
    const auto plan = plans_.find(problem);
    if (plan == plans_.end() || !plan->second.ok()) {
      return absl::InternalError("attention by cuDNN was started before it was prepared");
    }
    std::unordered_map<int64_t, void*> tensors = {{kLengths, Mutable(addresses.lengths)}};
    for (int o = 0; o < kSdpaOperands; ++o) {
      if (!Has(problem, SdpaOperand(o))) continue;
      tensors[o] = addresses.data[o];
      tensors[kBegins + o] = Mutable(addresses.begins[o]);
    }
    if (fe::detail::set_stream(handle_, reinterpret_cast<cudaStream_t>(stream)) !=
        CUDNN_STATUS_SUCCESS) {
      return absl::InternalError("cudnnSetStream failed");
    }
    fe::error_t error = (*plan->second)->graph->execute(handle_, tensors, addresses.workspace);
    return error.is_bad() ? absl::InternalError(absl::StrCat("cuDNN: ", error.get_message()))
                          : absl::OkStatus();
  }

 private:
  struct Plan {
    std::shared_ptr<fe::graph::Graph> graph;
    int64_t workspace_bytes = 0;
  };

  static void* Mutable(const int32_t* table) { return const_cast<int32_t*>(table); }
  static bool Has(const SdpaProblem& problem, SdpaOperand o) {
    return o <= kLse || problem.backward;
  }

  absl::StatusOr<std::unique_ptr<Plan>> Build(const SdpaProblem& problem, const Properties& card) {
    if (absl::Status s = LoadCudnn(); !s.ok()) return s;
    if (handle_ == nullptr && fe::detail::create_handle(&handle_) != CUDNN_STATUS_SUCCESS) {
      return absl::InternalError("cudnnCreate failed");
    }
    auto graph = SdpaGraph(problem, card.major * 10 + card.minor);
    if (!graph.ok()) return graph.status();
    auto plan = std::make_unique<Plan>();
    plan->graph = *std::move(graph);
    fe::graph::Graph& g = *plan->graph;
    fe::error_t error = g.build_operation_graph(handle_);
    if (error.is_good()) error = g.create_execution_plans({fe::HeurMode_t::A});
    g.deselect_numeric_notes({fe::NumericalNote_t::NONDETERMINISTIC});
    if (error.is_good()) error = g.check_support(handle_);
    if (error.is_good()) error = g.build_plans(handle_);
    if (error.is_good()) error = g.get_workspace_size(plan->workspace_bytes);
    if (error.is_bad()) {
      return absl::UnimplementedError(absl::StrCat("cuDNN ", CudnnVersion(), " has no plan for ",
                                                   problem.backward ? "the gradients of " : "",
                                                   "this attention: ", error.get_message()));
    }
    return plan;
  }

  std::mutex mutex_;
  cudnnHandle_t handle_ = nullptr;
  std::map<SdpaProblem, absl::StatusOr<std::unique_ptr<Plan>>> plans_;
};

Library& Get() {
  static Library* const library = new Library;
  return *library;
}

// The frontend throws where a function is missing in a library.
template <class F>
auto Caught(F&& f) -> decltype(f()) {
  try {
    return f();
  } catch (const std::exception& e) {
    return absl::InternalError(absl::StrCat("cuDNN: ", e.what()));
  }
}

}  // namespace

absl::StatusOr<int64_t> PrepareSdpa(const SdpaProblem& problem, const Properties& card) {
  return Caught([&] { return Get().Prepare(problem, card); });
}

void RunSdpa(Launcher& launcher, const SdpaProblem& problem, const SdpaAddresses& addresses) {
  if (!launcher.status().ok()) return;
  launcher.Fail(Caught([&] { return Get().Run(problem, addresses, launcher.stream()); }));
}

}  // namespace qlora::gpu
