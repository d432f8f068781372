#include "proto/job_defaults.h"

namespace qlora::proto {
namespace {

// For scalars, enums and strings alike: the field's own setter, if the job left it out.
#define QLORA_DEFAULT(message, field, value) \
  if (!(message).has_##field()) (message).set_##field(value)

void FillQuantization(Quantization& q) {
  QLORA_DEFAULT(q, bnb_4bit_quant_type, QuantType::NF4);
  QLORA_DEFAULT(q, bnb_4bit_use_double_quant, true);
  QLORA_DEFAULT(q, block_size, 64);
}

void FillLora(Lora& lora) {
  QLORA_DEFAULT(lora, r, 16);
  QLORA_DEFAULT(lora, lora_alpha, 16);
  QLORA_DEFAULT(lora, lora_dropout, 0.05);
  QLORA_DEFAULT(lora, use_rslora, false);
  QLORA_DEFAULT(lora, allow_uneven_targets, false);
  if (lora.target_modules().empty() && !lora.has_target_modules_regex()) {
    lora.add_target_modules("all-linear");
  }
}

void FillTraining(Mode::Value mode, Training& t) {
  QLORA_DEFAULT(t, learning_rate, mode == Mode::FULL ? 2e-5 : 2e-4);
  QLORA_DEFAULT(t, lr_scheduler_type, Scheduler::CONSTANT_WITH_WARMUP);
  if (!t.has_warmup_steps()) {
    QLORA_DEFAULT(t, warmup_ratio, t.lr_scheduler_type() == Scheduler::CONSTANT ? 0 : 0.03);
  }
  QLORA_DEFAULT(t, max_grad_norm, 0.3);
  QLORA_DEFAULT(t, per_device_train_batch_size, 1);
  QLORA_DEFAULT(t, gradient_accumulation_steps, 16);
  QLORA_DEFAULT(t, gradient_sum, GradientSum::TREE);
  if (!t.has_max_steps()) QLORA_DEFAULT(t, num_train_epochs, 3);
  QLORA_DEFAULT(t, weight_decay, 0);
  QLORA_DEFAULT(t, adam_beta1, 0.9);
  QLORA_DEFAULT(t, adam_beta2, 0.999);
  QLORA_DEFAULT(t, adam_epsilon, 1e-8);
  QLORA_DEFAULT(t, optim, Optimizer::PAGED_ADAMW_32BIT);
  QLORA_DEFAULT(t, logging_steps, 10);
  QLORA_DEFAULT(t, eval_steps, 250);
  QLORA_DEFAULT(t, save_steps, 250);
  QLORA_DEFAULT(t, save_total_limit, 3);
  QLORA_DEFAULT(t, load_best_model_at_end, false);
  QLORA_DEFAULT(t, recompute, Recompute::AUTO);
  QLORA_DEFAULT(t, max_consecutive_nonfinite, 5);
}

void FillData(Data& d) {
  QLORA_DEFAULT(d, eval_fraction, 0);
  QLORA_DEFAULT(d, format, DataFormat::AUTO);
  QLORA_DEFAULT(d, text_field, "text");
  QLORA_DEFAULT(d, prompt_field, "prompt");
  QLORA_DEFAULT(d, completion_field, "completion");
  QLORA_DEFAULT(d, chat_format, ChatFormat::AUTO);
  QLORA_DEFAULT(d, max_length, 1024);
  QLORA_DEFAULT(d, packing, false);
  QLORA_DEFAULT(d, truncation, Truncation::TRUNCATE);
  QLORA_DEFAULT(d, append_eos, true);
  QLORA_DEFAULT(d, train_on_prompt, false);
  QLORA_DEFAULT(d, train_newline_after_turn, false);
  QLORA_DEFAULT(d, whole_string_tokenization, false);
  QLORA_DEFAULT(d, shuffle, true);
  QLORA_DEFAULT(d, max_train_samples, 0);
  QLORA_DEFAULT(d, max_eval_samples, 0);
  QLORA_DEFAULT(d, alpaca_response_tail, "\n");
}

void FillDrift(Drift& d) {
  QLORA_DEFAULT(d, baseline, BaselineDtype::FP16);
  QLORA_DEFAULT(d, max_samples, 128);
  QLORA_DEFAULT(d, compare_types, true);
  if (d.block_sizes().empty()) {
    for (const int size : {32, 128, 256, 1024, 4096}) d.add_block_sizes(size);
  }
  QLORA_DEFAULT(d, compare_remedies, true);
  if (d.keep_worst_layers().empty()) {
    for (const int count : {1, 2}) d.add_keep_worst_layers(count);
  }
  QLORA_DEFAULT(d, outlier_factor, 3);
  QLORA_DEFAULT(d, worst_samples, 10);
  QLORA_DEFAULT(d, apply_residual_init, false);
}

void FillMerge(const Job& job, Merge& m) {
  if (job.has_output_dir()) {
    QLORA_DEFAULT(m, adapter, job.output_dir());
    QLORA_DEFAULT(m, output, job.output_dir() + "/merged");
  }
  QLORA_DEFAULT(m, into, job.mode() == Mode::QLORA ? MergeInto::DEQUANTIZED : MergeInto::BASE);
  QLORA_DEFAULT(m, max_samples, 128);
  QLORA_DEFAULT(m, max_loss_increase, 0.02);
  QLORA_DEFAULT(m, accept_loss, false);
}

}  // namespace

bool HasPrompts(DataFormat::Value format) {
  return format != DataFormat::TEXT && format != DataFormat::PRETOKENIZED;
}

bool HasHeldOutData(const Job& job) {
  return job.data().has_eval_file() || job.data().eval_fraction() > 0;
}

Job WithDefaults(const Job& given) {
  Job job = given;
  QLORA_DEFAULT(job, overwrite_output_dir, false);
  QLORA_DEFAULT(job, mode, Mode::QLORA);
  QLORA_DEFAULT(job, seed, 42);
  QLORA_DEFAULT(job, compute_dtype, ComputeDtype::BF16);
  QLORA_DEFAULT(job, device, DeviceKind::AUTO);
  QLORA_DEFAULT(job, num_threads, 0);
  QLORA_DEFAULT(job, cpu_isa, CpuIsa::AUTO);
  QLORA_DEFAULT(job, kernel_selection, KernelSelection::TABLE);
  QLORA_DEFAULT(job, attention_kernel, AttentionKernel::OWN);
  if (job.mode() == Mode::QLORA) FillQuantization(*job.mutable_quantization());
  if (job.mode() != Mode::FULL) FillLora(*job.mutable_lora());
  FillTraining(job.mode(), *job.mutable_training());
  FillData(*job.mutable_data());

  Eval& eval = *job.mutable_eval();
  if (!eval.has_file() && job.data().has_eval_file()) eval.set_file(job.data().eval_file());
  QLORA_DEFAULT(eval, exact_match, false);
  QLORA_DEFAULT(eval, max_new_tokens, 256);
  QLORA_DEFAULT(eval, per_device_eval_batch_size, job.training().per_device_train_batch_size());

  Generate& generate = *job.mutable_generate();
  QLORA_DEFAULT(generate, max_new_tokens, 256);
  QLORA_DEFAULT(generate, temperature, 0);
  QLORA_DEFAULT(generate, top_p, 1);
  QLORA_DEFAULT(generate, seed, job.seed());

  Parallel& parallel = *job.mutable_parallel();
  QLORA_DEFAULT(parallel, silence_seconds, 60);
  QLORA_DEFAULT(parallel, shard_base, false);
  QLORA_DEFAULT(parallel, shard_states, false);

  QLORA_DEFAULT(*job.mutable_economics(), currency, "USD");
  Plan& plan = *job.mutable_plan();
  QLORA_DEFAULT(plan, world_size, 1);
  QLORA_DEFAULT(plan, network_bytes_per_second, 25e9);
  QLORA_DEFAULT(plan, network_latency_seconds, 2e-5);
  QLORA_DEFAULT(plan, explore, true);
  QLORA_DEFAULT(plan, report, false);
  FillDrift(*job.mutable_drift());
  FillMerge(job, *job.mutable_merge());
  if (job.has_sweep()) {
    QLORA_DEFAULT(*job.mutable_sweep(), tolerance, 0.01);
    QLORA_DEFAULT(*job.mutable_sweep(), raise_rank, false);
  }
  return job;
}

#undef QLORA_DEFAULT

}  // namespace qlora::proto
