#include "engine/report/trainer_state.h"

#include <nlohmann/json.hpp>

namespace qlora::engine {
namespace {

using Json = nlohmann::ordered_json;

Json RecordJson(const proto::LogRecord& record) {
  Json json;
  json["epoch"] = record.epoch();
  if (record.has_eval_loss()) json["eval_loss"] = record.eval_loss();
  if (record.has_eval_accuracy()) json["eval_mean_token_accuracy"] = record.eval_accuracy();
  if (record.has_eval_exact_match()) json["eval_exact_match"] = record.eval_exact_match();
  if (record.has_grad_norm()) json["grad_norm"] = record.grad_norm();
  if (record.has_learning_rate()) json["learning_rate"] = record.learning_rate();
  if (record.has_loss()) json["loss"] = record.loss();
  json["step"] = record.step();
  return json;
}

}  // namespace

std::string TrainerStateJson(const TrainerSettings& settings, const proto::RunState& state) {
  Json json;
  json["best_metric"] = state.has_best_eval_loss() ? Json(state.best_eval_loss()) : Json(nullptr);
  json["best_model_checkpoint"] =
      state.best_checkpoint().empty() ? Json(nullptr) : Json(state.best_checkpoint());
  const int records = state.log_history_size();
  json["epoch"] = records > 0 ? state.log_history(records - 1).epoch() : 0.0;
  json["eval_steps"] = settings.eval_steps;
  json["global_step"] = state.step();
  json["is_hyper_param_search"] = false;
  json["is_local_process_zero"] = true;
  json["is_world_process_zero"] = true;
  json["log_history"] = Json::array();
  for (const proto::LogRecord& record : state.log_history()) {
    json["log_history"].push_back(RecordJson(record));
  }
  json["logging_steps"] = settings.logging_steps;
  json["max_steps"] = settings.max_steps;
  json["num_train_epochs"] = settings.num_train_epochs;
  json["save_steps"] = settings.save_steps;
  json["train_batch_size"] = settings.train_batch_size;
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace qlora::engine
