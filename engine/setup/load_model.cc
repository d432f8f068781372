#include "engine/setup/load_model.h"

#include <utility>
#include <vector>

#include "engine/checkpoint/checkpoint.h"
#include "engine/lora/initialize.h"
#include "engine/model/load_weights.h"
#include "engine/model/quantize_cache.h"
#include "engine/report/live_progress.h"

namespace qlora::engine {
namespace {

absl::Status LoadBase(const Setup& setup, Execution* execution, Console* console,
                      const Progress& shown) {
  const Progress progress = [&](double share) {
    if (setup.ranks != nullptr) setup.ranks->control().Progress();
    return shown(share);
  };
  const std::string& folder = setup.job.quantization().quantize_cache();
  if (setup.job.mode() != proto::Mode::QLORA || folder.empty()) {
    return LoadWeights(*setup.model, execution, progress, setup.reading());
  }
  std::vector<std::string> notes;
  const absl::Status status = LoadWeightsCached({setup.env, folder, setup.base_hash}, *setup.model,
                                                execution, progress, &notes, setup.reading());
  for (const std::string& note : notes) console->Line(note);
  return status;
}

}  // namespace

absl::Status LoadModel(const Setup& setup, const std::string& adapter, Execution* execution,
                       Console* console, const Progress& progress) {
  if (!setup.model) return InitializeWeights(setup.job.seed(), execution);
  const absl::Status loaded =
      LoadBase(setup, execution, console, progress ? progress : LiveProgress(console, "loading"));
  console->EndLive();
  if (!loaded.ok()) return loaded;
  if (setup.targets.modules.empty()) return absl::OkStatus();
  return StartAdapter(setup, adapter, execution, 0);
}

absl::Status StartAdapter(const Setup& setup, const std::string& adapter, Execution* execution,
                          int64_t course) {
  if (!adapter.empty()) return LoadAdapter(setup.env, adapter, execution, course);
  const Storage& storage = execution->plan().run.storage;
  std::vector<float> values;
  for (size_t i = 0; i < storage.adapters[course].size(); ++i) {
    const AdaptedModule& module = setup.targets.modules[i];
    const AdapterSlot& slot = storage.adapters[course][i];
    values.resize(module.rank * module.in);
    InitializeLoraA(setup.job.seed(), module, absl::MakeSpan(values));
    if (absl::Status s = WriteTrained(execution, slot.a_parameter, values); !s.ok()) return s;
    values.assign(module.out * module.rank, 0.0f);
    if (absl::Status s = WriteTrained(execution, slot.b_parameter, values); !s.ok()) return s;
  }
  return absl::OkStatus();
}

}  // namespace qlora::engine
