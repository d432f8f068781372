// Seeds of jobs.
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/support/fuzz/seeds.h"

namespace qlora::tests {

void AddJobSeeds(const Seeds& seeds) {
  const std::string data = " data { train_file: \"d.jsonl\" } ";
  seeds.Add("job", "small", "model: \"m\" output_dir: \"o\"" + data);
  seeds.Add("job", "adapters",
            "model: \"m\" output_dir: \"o\" mode: LORA lora { r: 8 lora_alpha: 16 use_rslora: true "
            "target_modules: [\"q_proj\", \"down_proj\"] }" +
                data + kNul + "training.learning_rate=1e-4");
  seeds.Add("job", "pattern",
            "model: \"m\" lora { target_modules_regex: \".*\\\\.(q|v)_proj\" }" + data);
  seeds.Add("job", "full",
            "mode: FULL model_init { config: \"c\" tokenizer: \"t\" } output_dir: \"o\" training { "
            "max_steps: 5 lr_scheduler_type: COSINE optim: ADAMW_8BIT } memory_limit: \"6GiB\"" +
                data);
  // All problems are told at once.
  seeds.Add(
      "job", "contradictions",
      "model: \"m\" model_init {} output_dir: \"./m/\" mode: FULL device: CUDA cpu_isa: AVX2 "
      "attention_kernel: CUDNN compute_dtype: FP32 memory_limit: \"1XB\" "
      "quantization { block_size: 48 } lora { r: 4 target_modules: [\"all-linear\", \"a\", "
      "\"a\"] target_modules_regex: \"(\" } training { warmup_ratio: 0.1 warmup_steps: 9 "
      "max_steps: 5 lr_scheduler_type: CONSTANT load_best_model_at_end: true optim: ADAMW_8BIT "
      "per_device_train_batch_size: 60000 paged_states_budget: \"1GiB\" } parallel { "
      "shard_base: true } data { train_file: \"t\" eval_file: \"e\" eval_fraction: 0.1 "
      "format: TEXT whole_string_tokenization: true prompt_field: \"a\" completion_field: "
      "\"a\" max_length: 65536 } eval { exact_match: true } generate { prompt: \"p\" "
      "messages { role: \"x\" } messages { role: \"assistant\" content: \"c\" } } "
      "gates { min_exact_match: 0.5 max_eval_loss_increase: 0 } plan { memory: \"x\" "
      "report: true world_size: 2 } sweep { ranks: [2, 2] raise_rank: true "
      "adapter { name: \"../a\" } adapter { name: \"checkpoint-1\" } } "
      "drift { block_sizes: 33 apply_residual_init: true adapter: \"a\" "
      "compare_remedies: false }");
  seeds.Add("job", "overwrites",
            "model: \"o/checkpoint-1\" output_dir: \"o\" overwrite_output_dir: true "
            "lora { init_from: \"o/checkpoint-2\" } eval { logits_file: \"d.jsonl\" } "
            "merge { output: \"o\" }" +
                data);
  seeds.Add("job", "sweep",
            "model: \"m\" output_dir: \"o\" sweep { adapter { name: \"a\" r: 2 lora_alpha: 4 "
            "lora_dropout: 0.1 target_modules: \"q_proj\" learning_rate: 1e-3 seed: 4 train_file: "
            "\"f\" eval_file: \"g\" } ranks: [2, 4] learning_rates: [1e-4, 2e-4] seeds: [1, 2] } "
            "gates { max_kl: 1 } data { train_file: \"d\" eval_fraction: 0.1 }");
  seeds.Add("job", "sweep_of_two_sets",
            "model: \"m\" output_dir: \"o\" sweep { raise_rank: true adapter { r: 2 eval_file: "
            "\"e\" } adapter { r: 4 eval_file: \"f\" } adapter { name: \"adapter-0\" } }" +
                data);
  seeds.Add("job", "sweep_of_nothing", "model: \"m\" sweep {}");
  std::string ranks = "1";
  for (int r = 2; r <= 300; ++r) absl::StrAppend(&ranks, ",", r);
  seeds.Add("job", "sweep_of_300", "model: \"m\" sweep { ranks: [" + ranks + "] }");
  seeds.Add(
      "job", "other_commands",
      "model: \"m\" output_dir: \"o\" eval { file: \"e\" adapter: \"a\" } generate { messages "
      "{ role: \"user\" content: \"c\" } } drift { keep_worst_layers: [1, 2] } "
      "merge { into: BASE } memory_limit: \"1.5GiB\"" +
          data + kNul + "lora.target_modules=q_proj,v_proj");
  const auto each = [&](const char* name, const std::vector<std::string>& values,
                        const std::string& before, const std::string& behind) {
    for (size_t i = 0; i < values.size(); ++i) {
      seeds.Add("job", absl::StrCat(name, i), absl::StrCat(before, values[i], behind));
    }
  };
  each("set_",
       {"training.learning_rate", "=1", "nothing=1", "model.x=1", "training=1", "training.x=1",
        "training.learning_rate=x", "mode=LORAX", "seed=", "training.max_steps=9"},
       "model: \"m\"" + data + kNul, "");
  seeds.Add("job", "syntax",
            "model:\noutput_dir: \"o\"\ntraining { learning_rate: x\n}\nmode: QLORAX # [\n"
            "lora { rank: 4 }\ndata { 'a\\'{' \"\n");
  each("memory_", {"1", "9GiX", ".5kB", "99999999999999999999B", "9000000TiB", "0.1B", "x"},
       "model: \"m\" memory_limit: \"", "\"" + data);
  each("target_", {"q_prox", "lm_head", "embed_tokens", "model.layers.0.mlp.up_proj"},
       "model: \"m\" output_dir: \"o\" lora { target_modules: \"", "\" }" + data);
  each("pattern_", {"(", "nothing", "(.*.*)*(.*.*)*x"},
       "model: \"m\" output_dir: \"o\" lora { target_modules_regex: \"", "\" }" + data);
  seeds.Add("job", "wrong", "mode: NONE seed: -1 lora { r: 0 }\ntraining { x: 1 " + data);
}

}  // namespace qlora::tests
