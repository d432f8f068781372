#include "engine/report/sidecar.h"

#include <google/protobuf/stubs/common.h>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "engine/host_memory.h"
#include "engine/io/atomic_file.h"
#include "engine/version.h"

namespace qlora::engine {

absl::Status WriteSidecar(const Setup& setup, const Plan& plan, const proto::RunState& state,
                          const TrainSpeed& speed) {
  nlohmann::ordered_json json;
  json["engine_version"] = kEngineVersion;
  json["compiler"] = __VERSION__;
  json["protobuf_version"] = GOOGLE_PROTOBUF_VERSION;
  json["device"] = setup.device->info().name;
  json["mode"] = proto::Mode::Value_Name(setup.job.mode());
  json["base"] = {{"name", setup.job.model()}, {"sha256", setup.base_hash}};
  json["data"] = {{"sha256", state.data_hash()},
                  {"samples", setup.train_data.report.samples},
                  {"tokens", setup.train_data.report.tokens},
                  {"trained_tokens", setup.train_data.report.trained_tokens}};
  json["job"] = {{"sha256", state.job_hash()}, {"decisive_fields", setup.job_text}};
  json["trained_parameters"] = plan.run.storage.space.trained();
  json["model_parameters"] = ParameterCount(setup.spec);
  json["adapter_bytes"] = setup.lora_size.adapter_bytes;
  json["steps"] = state.step();
  json["updates"] = state.updates();
  json["plan_bytes"] = plan.total_bytes;
  json["peak_bytes"] = PeakHostMemory();
  json["train_seconds"] = speed.seconds;
  json["tokens_per_second"] = double(speed.tokens) / speed.seconds;
  return AtomicWriteFile(setup.env, JoinPath(setup.job.output_dir(), "qlora_run.json"),
                         json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

}  // namespace qlora::engine
