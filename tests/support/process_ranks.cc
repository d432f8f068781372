#include "tests/support/process_ranks.h"

#include <cstdlib>
#include <memory>

#include "kernels/cuda/cuda_device.h"

namespace qlora::tests {
namespace {

using Body =
    std::function<absl::StatusOr<std::string>(engine::Ranks& ranks, kernels::Device* device)>;

absl::StatusOr<std::string> OverDevice(engine::Ranks* ranks, const Body& body) {
  absl::StatusOr<std::unique_ptr<kernels::Device>> device = kernels::cuda::CreateCudaDevice({});
  if (!device.ok()) return device.status();
  const absl::Status opened = ranks->OpenComm(device->get());
  absl::StatusOr<std::string> result =
      opened.ok() ? body(*ranks, device->get()) : absl::StatusOr<std::string>(opened);
  // Nobody leaves while another still waits for what it has sent.
  if (result.ok()) {
    if (absl::Status s = ranks->control().AllGather("the end", "").status(); !s.ok()) result = s;
  }
  if (!result.ok()) ranks->control().Abort(result.status());
  ranks->CloseComm();
  return result;
}

}  // namespace

std::vector<ProcessOutcome> OnProcesses(int size, const ProcessOptions& options, const Body& body) {
  RankProcesses processes(
      size, options.silence_seconds,
      [&](const engine::World& world,
          const engine::ControlOptions& control) -> absl::StatusOr<std::string> {
        ::setenv("FAKE_NCCL_FAULT", options.fault.c_str(), 1);
        if (!options.abort_log.empty()) ::setenv("FAKE_NCCL_LOG", options.abort_log.c_str(), 1);
        absl::StatusOr<std::unique_ptr<engine::Ranks>> ranks = engine::Ranks::Join(world, control);
        if (!ranks.ok()) return ranks.status();
        return OverDevice(ranks->get(), body);
      });
  std::vector<ProcessOutcome> outcomes;
  for (int rank = 0; rank < size; ++rank) outcomes.push_back(processes.Wait(rank));
  return outcomes;
}

}  // namespace qlora::tests
