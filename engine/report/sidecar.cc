#include "engine/report/sidecar.h"

#include <google/protobuf/stubs/common.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/io/atomic_file.h"
#include "engine/plan/host_memory.h"
#include "engine/report/console.h"
#include "engine/version.h"

namespace qlora::engine {

std::string TrainSpeed::Describe() const {
  const double error = seconds / predicted_seconds - 1;
  return absl::StrFormat("speed: %s tokens/s; the plan predicted %s, %.0f %% %s",
                         FormatCount(int64_t(TokensPerSecond() + 0.5)),
                         FormatCount(int64_t(PredictedTokensPerSecond() + 0.5)),
                         100 * std::abs(error), error < 0 ? "less" : "more");
}

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
  const bool full = setup.job.mode() == proto::Mode::FULL;
  json["trained_parameters"] =
      full ? plan.run.storage.space.trained() : setup.lora_size.trained_parameters;
  json["model_parameters"] = ParameterCount(setup.spec);
  json["adapter_bytes"] = setup.lora_size.adapter_bytes;
  json["steps"] = state.step();
  json["updates"] = state.updates();
  json["plan_bytes"] = plan.total_bytes;
  json["peak_bytes"] = PeakHostMemory();
  json["train_seconds"] = speed.seconds;
  json["tokens_per_second"] = speed.TokensPerSecond();
  json["predicted_tokens_per_second"] = speed.PredictedTokensPerSecond();
  json["prediction_error"] = speed.seconds / speed.predicted_seconds - 1;
  return AtomicWriteFile(setup.env, JoinPath(setup.job.output_dir(), kSidecarFile),
                         json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

}  // namespace qlora::engine
