// Cards that a run can be planned for by name, with their makers' public figures.

#ifndef QLORA_ENGINE_PLAN_CARD_TABLE_H_
#define QLORA_ENGINE_PLAN_CARD_TABLE_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/plan/rates.h"
#include "kernels/device.h"
#include "proto/job.pb.h"

namespace qlora::engine {

// The device and the rates of the job's plan.card, with the job's own figures in place of the
// table's. Without a card plan.memory, plan.memory_bytes_per_second and plan.flops_per_second must
// all be there. BadJobError names the cards there are; NoDeviceError says why a known card is
// refused.
struct PlannedDevice {
  std::unique_ptr<kernels::Device> device;
  MachineRates rates;
  std::string rates_source;  // "72 % of 989 TFLOP/s and 89 % of 3,350 GB/s, ..."
};
absl::StatusOr<PlannedDevice> FindPlannedDevice(const proto::Plan& plan);

// Whether the job's plan is for another device than this machine's.
bool NamesDevice(const proto::Plan& plan);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_PLAN_CARD_TABLE_H_
