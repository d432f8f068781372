// Command plan from a job to its reports: named cards, large shapes from a config.json alone,
// ranks, economics.

#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "engine/comm/nccl_memory.h"
#include "tests/support/paths.h"
#include "tests/tools/workplace.h"

namespace qlora::tests {
namespace {

using testing::HasSubstr;
using testing::Not;

class PlanCommand : public Workplace {
 protected:
  // A plan's report as JSON, of a job in `text`.
  nlohmann::json Report(const std::string& text, int exit_code = 0,
                        const std::vector<std::string>& more = {}) {
    Write("plan.textproto", absl::StrCat(text, "\noutput_dir: '", Path("report"), "'"));
    std::vector<std::string> words = {"plan", Path("plan.textproto"), "--set", "plan.report=true"};
    words.insert(words.end(), more.begin(), more.end());
    const CommandResult result = RunEngine(words);
    EXPECT_EQ(result.exit_code, exit_code) << result.out << result.err;
    return nlohmann::json::parse(Read("report/plan_report.json"), nullptr, false);
  }
  static std::string Shape(const std::string& name) {
    return absl::StrCat("model: '", SourceDir(), "/bench/models/", name, "'\n");
  }
};

int64_t Number(const nlohmann::json& value) {
  return value.is_string() ? std::stoll(value.get<std::string>()) : value.get<int64_t>();
}

// QLoRA's recipe: r = 64 on all linears, paged states.
constexpr char kRecipe[] =
    "lora { r: 64 } training { optim: PAGED_ADAMW_32BIT gradient_sum: SEQUENTIAL }\n";

TEST_F(PlanCommand, LargeShapesFitTheirCardsItemByItem) {
  struct Case {
    const char *shape, *card;
    int64_t parameters, bytes;
    int tokens;
  };
  for (const Case& c : {Case{"llama_7b", "RTX 3090", 6738415616, 24'000'000'000, 512},
                        Case{"llama_13b", "A10", 13015864320, 24'000'000'000, 512},
                        Case{"llama_33b", "RTX 4090", 32528943616, 24'000'000'000, 512},
                        Case{"llama_65b", "L40S", 65285660672, 48'000'000'000, 512},
                        Case{"llama3_70b", "A100-80GB", 70553706496, 80'000'000'000, 512}}) {
    const nlohmann::json report =
        Report(absl::StrCat(Shape(c.shape), kRecipe, "data { max_length: ", c.tokens,
                            " } plan { card: '", c.card, "' explore: false }"));
    ASSERT_TRUE(report.is_object()) << c.shape;
    EXPECT_TRUE(report["fits"].get<bool>()) << c.shape;
    EXPECT_EQ(Number(report["parameters"]), c.parameters) << c.shape;
    int64_t on_device = 0;
    for (const auto& item : report["items"]) {
      if (item["memory"] == "device") on_device += Number(item["bytes"]);
    }
    EXPECT_EQ(on_device, Number(report["device_bytes"])) << c.shape;
    EXPECT_LE(on_device, c.bytes) << c.shape;
    // Four bits a weight, with their scales, are there at least.
    EXPECT_GT(on_device, c.parameters / 2) << c.shape;
    EXPECT_GT(report["time"]["speed"]["tokens_per_second"].get<double>(), 0);
  }
}

TEST_F(PlanCommand, WhatDoesNotFitNamesTheCheapestChanges) {
  const nlohmann::json report =
      Report(absl::StrCat(Shape("qwen3_1.7b"), "mode: LORA plan { card: 'L4' memory: '4GB' }"), 71);
  EXPECT_FALSE(report["fits"].get<bool>());
  ASSERT_FALSE(report["changes"].empty());
  double before = 0;
  bool quantizes = false;
  for (const auto& change : report["changes"]) {
    EXPECT_GE(change["relative_time"].get<double>(), before);
    EXPECT_LE(Number(change["device_bytes"]), 4'000'000'000);
    before = change["relative_time"].get<double>();
    quantizes = quantizes || change["change"] == "mode: QLORA";
  }
  EXPECT_TRUE(quantizes);
  EXPECT_EQ(Number(report["largest_batch"]), 0);
}

// "mode: QLORA and training.recompute: AUTO" as words of the command line.
std::vector<std::string> AsSettings(const std::string& change) {
  std::vector<std::string> words;
  for (const absl::string_view edit : absl::StrSplit(change, " and ")) {
    words.push_back("--set");
    words.push_back(absl::StrReplaceAll(edit, {{": ", "="}}));
  }
  return words;
}

TEST_F(PlanCommand, EachChangeMakesTheJobFitAsItSays) {
  // The last has room for states in 8 bits only.
  for (const std::string job :
       {"mode: LORA plan { card: 'L4' memory: '4GB' }",
        "lora { r: 64 } training { optim: ADAMW_32BIT } plan { card: 'L4' memory: '2600MB' }",
        "mode: FULL training { optim: ADAMW_8BIT gradient_sum: SEQUENTIAL "
        "per_device_train_batch_size: 1 } plan { card: 'L4' memory: '20GB' host_memory: '4GB' }"}) {
    const std::string text = Shape("qwen3_1.7b") + job + " data { max_length: 512 }";
    int applied = 0;
    const nlohmann::json report = Report(text, 71);
    for (const auto& change : report["changes"]) {
      const std::string edits = change["change"].get<std::string>();
      if (absl::StrContains(edits, "of the tokens")) continue;
      const nlohmann::json changed = Report(text, 0, AsSettings(edits));
      EXPECT_TRUE(changed["fits"].get<bool>()) << edits;
      EXPECT_EQ(Number(changed["device_bytes"]), Number(change["device_bytes"])) << edits;
      ++applied;
    }
    EXPECT_GT(applied, 0) << job;
  }
}

TEST_F(PlanCommand, ASmallerRankIsAmongTheChanges) {
  const nlohmann::json report =
      Report(Shape("qwen3_1.7b") +
                 "lora { r: 256 } training { optim: ADAMW_32BIT } "
                 "plan { card: 'L4' memory: '4GB' } data { max_length: 512 }",
             71);
  EXPECT_THAT(report["changes"].dump(), HasSubstr("lora.r: 32"));
}

TEST_F(PlanCommand, ModesAreAsTheirOwnPlansHaveThem) {
  const std::string job = Shape("qwen3_0.6b") +
                          "data { max_length: 512 } training { save_steps: 5 } plan { card: "
                          "'H100' world_size: 8 network_bytes_per_second: 1e9 ";
  const nlohmann::json qlora = Report(job + "}");
  const auto step = [](const nlohmann::json& report) {
    return report["time"]["speed"]["step_seconds"].get<double>();
  };
  for (const auto& mode : qlora["economics"]["modes"]) {
    const std::string change = mode["change"].get<std::string>();
    const nlohmann::json own = Report(absl::StrCat(job, "explore: false } ", change));
    EXPECT_EQ(Number(mode["device_bytes"]), Number(own["device_bytes"])) << change;
    EXPECT_EQ(Number(mode["host_bytes"]), Number(own["host_bytes"])) << change;
    EXPECT_EQ(mode["fits"], own["fits"]) << change;
    EXPECT_NEAR(mode["relative_time"].get<double>(), step(own) / step(qlora), 1e-9) << change;
  }
}

// Beside a card the copy of the state for a checkpoint lies in the host's memory.
TEST_F(PlanCommand, TheCopyOfTheStateIsListed) {
  const std::string job = Shape("qwen3_0.6b") +
                          "data { max_length: 512 } plan { card: 'H100' "
                          "explore: false } training { save_steps: ";
  const auto on_host = [&](const char* steps) {
    const nlohmann::json report = Report(absl::StrCat(job, steps, " }"));
    int64_t bytes = 0, copy = 0;
    for (const auto& item : report["items"]) {
      if (item["memory"] != "host") continue;
      bytes += Number(item["bytes"]);
      if (absl::StartsWith(item["name"].get<std::string>(), "copy of the trained state")) {
        copy += Number(item["bytes"]);
      }
    }
    EXPECT_EQ(bytes, Number(report["host_bytes"]));
    return copy;
  };
  EXPECT_GT(on_host("5"), 0);
  EXPECT_EQ(on_host("0"), 0);
}

// 7 billion parameters' moments and masters are 80 GB; what the card has no room for passes the
// link both ways in each step.
TEST_F(PlanCommand, StatesThatArePagedTakeTheirTimeOnTheLink) {
  // Without checkpoints, whose copy lies in host memory too.
  const std::string job = Shape("llama_7b") +
                          "mode: FULL data { max_length: 512 } training { gradient_sum: SEQUENTIAL "
                          "save_steps: 0 } plan { card: 'H100' explore: false ";
  const nlohmann::json table = Report(job + "}"),
                       slow = Report(job + "link_bytes_per_second: 1e9 }");
  const int64_t away = Number(slow["host_bytes"]);
  ASSERT_GT(away, 10'000'000'000);
  EXPECT_EQ(slow["time"]["bound"], "host link");
  const auto seconds = [](const nlohmann::json& report, const char* field) {
    return report["time"][field].get<double>();
  };
  EXPECT_GT(seconds(slow, "link_seconds"), 0.9 * double(away) / 1e9);
  EXPECT_LT(seconds(slow, "link_seconds"), double(away) / 1e9);
  EXPECT_GT(seconds(table, "link_seconds"), 0);
  EXPECT_LT(seconds(table, "link_seconds"), seconds(slow, "link_seconds") / 40);
  EXPECT_NEAR(slow["time"]["speed"]["step_seconds"].get<double>(),
              seconds(slow, "compute_seconds") + seconds(slow, "memory_seconds") +
                  seconds(slow, "link_seconds"),
              1e-9 * seconds(slow, "link_seconds"));
}

TEST_F(PlanCommand, TheLargestThatFitsFitsAndOneMoreDoesNot) {
  const std::string job = Shape("qwen3_0.6b") + "plan { card: 'L4' memory: '6GB' }";
  const int64_t batch = Number(Report(job)["largest_batch"]);
  ASSERT_GT(batch, 1);
  const auto with_rows = [&](int64_t rows, int exit_code) {
    return Report(absl::StrCat(Shape("qwen3_0.6b"),
                               "plan { card: 'L4' memory: '6GB' explore: false } training { ",
                               "per_device_train_batch_size: ", rows, " }"),
                  exit_code)["fits"]
        .get<bool>();
  };
  EXPECT_TRUE(with_rows(batch, 0));
  EXPECT_FALSE(with_rows(batch + 1, 71));
}

TEST_F(PlanCommand, TheLongestSequenceFitsAndALongerOneDoesNot) {
  const std::string job = Shape("qwen3_0.6b") + "plan { card: 'L4' memory: '3GB' ";
  const int64_t length = Number(Report(job + "}")["largest_sequence"]);
  ASSERT_GT(length, 1);
  ASSERT_LT(length, 40960) << "the model's positions end it, not the memory";
  const auto with_tokens = [&](int64_t tokens, int exit_code) {
    return Report(absl::StrCat(job, "explore: false } data { max_length: ", tokens, " }"),
                  exit_code)["fits"]
        .get<bool>();
  };
  EXPECT_TRUE(with_tokens(length, 0));
  EXPECT_FALSE(with_tokens(length + 64, 71)) << "memory is taken in steps";
}

TEST_F(PlanCommand, CardsThatCannotBeUsedSayWhy) {
  const auto refusal = [&](const std::string& plan) {
    Write("plan.textproto", absl::StrCat(Shape("llama_7b"), "plan { ", plan, " }"));
    return RunEngine({"plan", Path("plan.textproto")});
  };
  const CommandResult old_card = refusal("card: 'T4'");
  EXPECT_EQ(old_card.exit_code, 69);
  EXPECT_THAT(old_card.err, HasSubstr("7.5"));
  const CommandResult unknown = refusal("card: 'H1000'");
  EXPECT_EQ(unknown.exit_code, 64);
  EXPECT_THAT(unknown.err, HasSubstr("RTX 4090"));
  const CommandResult partial = refusal("memory: '24GB'");
  EXPECT_EQ(partial.exit_code, 64);
  EXPECT_THAT(partial.err, HasSubstr("plan.flops_per_second"));
}

TEST_F(PlanCommand, FiguresByHandTakeTheTablesPlace) {
  const nlohmann::json report = Report(Shape("llama_7b") +
                                       "plan { memory: '30GB' memory_bytes_per_second: 1e12 "
                                       "flops_per_second: 1e14 explore: false }");
  EXPECT_EQ(Number(report["limit_bytes"]), 30'000'000'000);
  EXPECT_EQ(report["time"]["flops_per_second"].get<double>(), 1e14);
}

TEST_F(PlanCommand, RanksShareAStepAndPayForTheSum) {
  const std::string job = Shape("llama_7b") + "plan { card: 'H100' explore: false world_size: ";
  const nlohmann::json one = Report(job + "1 }"), many = Report(job + "1000 }");
  const auto speed = [](const nlohmann::json& report, const char* field) {
    return report["time"]["speed"][field].get<double>();
  };
  EXPECT_EQ(speed(one, "communication_seconds"), 0);
  EXPECT_GT(speed(many, "communication_seconds"), 0);
  EXPECT_EQ(Number(many["time"]["tokens_per_step"]), 1000 * Number(one["time"]["tokens_per_step"]));
  EXPECT_LT(speed(many, "tokens_per_second"), 1000 * speed(one, "tokens_per_second"));
}

// Each rank receives half of 6.5 billion weights in 4 bits, forward and backward, sixteen times.
TEST_F(PlanCommand, WeightsThatAreSharedOutAreGatheredAgainAndAgain) {
  const std::string job = Shape("llama_7b") +
                          "plan { card: 'H100' explore: false world_size: 2 "
                          "network_bytes_per_second: 1e10 network_latency_seconds: 0 }";
  const auto seconds = [&](const std::string& parallel) {
    return Report(job + parallel)["time"]["speed"]["communication_seconds"].get<double>();
  };
  const double gathered = seconds("parallel { shard_base: true }") - seconds("");
  const double once = 0.5 * 6.5e9 / 2 / 1e10;
  EXPECT_GT(gathered, 2 * 16 * once);
  EXPECT_LT(gathered, 2 * 16 * 1.3 * once);
}

TEST_F(PlanCommand, CountsWhatNcclTakesForItself) {
  const std::string job = Shape("llama_7b") + "plan { card: 'H100' explore: false world_size: ";
  const auto nccl = [&](int ranks) {
    int64_t bytes = 0;
    const nlohmann::json report = Report(absl::StrCat(job, ranks, " }"));
    for (const auto& item : report["items"]) {
      if (item["name"].get<std::string>().starts_with("NCCL: ")) bytes += Number(item["bytes"]);
    }
    return bytes;
  };
  EXPECT_EQ(nccl(1), 0);
  EXPECT_EQ(nccl(2), engine::NcclDeviceBytes(2, 2, {}));
  EXPECT_EQ(nccl(64), engine::NcclDeviceBytes(64, 8, {}));
}

TEST_F(PlanCommand, ReportsAreReadableAndHarmless) {
  Report(absl::StrCat("model: '", Path("base"), "' data { max_length: 32 train_file: '",
                      Path("data.jsonl"),
                      "' } num_threads: 1 economics { currency: '<b>' cost_per_hour: 1e9 }"));
  EXPECT_THAT(Read("report/plan_report.txt"), HasSubstr("4-bit weights"));
  const std::string page = Read("report/plan_report.html");
  EXPECT_THAT(page, HasSubstr("4-bit weights"));
  EXPECT_THAT(page, Not(HasSubstr("<b>")));
  EXPECT_THAT(page, HasSubstr("&lt;b&gt;"));
  EXPECT_EQ(std::filesystem::exists(Path("report/adapter_model.safetensors")), false);
}

// The tokenizer has a token for every byte.
TEST_F(PlanCommand, TheInstructionsTokensAreWhatACallSaves) {
  const nlohmann::json economics = Report(absl::StrCat(
      "model: '", Path("base"), "' data { max_length: 64 train_file: '", Path("data.jsonl"),
      "' } num_threads: 1 economics { instruction: 'Answer:' calls_per_day: "
      "1e6 price_per_million_prompt_tokens: 2 cost_per_hour: 3600 }"))["economics"];
  EXPECT_NEAR(economics["prompt_tokens_with"].get<double>() -
                  economics["prompt_tokens_without"].get<double>(),
              7, 1e-9);
  EXPECT_NEAR(economics["tokens_saved_per_day"].get<double>(), 7e6, 1);
  EXPECT_NEAR(economics["saved_per_day"].get<double>(), 14, 1e-6);
  const double cost = economics["training_cost"].get<double>();
  EXPECT_GT(cost, 0);
  EXPECT_NEAR(economics["break_even_days"].get<double>(), cost / 14, 1e-9 * cost);
}

// What the data still carries is what could be left out, not what comes on top.
TEST_F(PlanCommand, AnInstructionInTheDataIsSubtracted) {
  const nlohmann::json economics = Report(absl::StrCat(
      "model: '", Path("base"), "' data { max_length: 64 train_file: '", Path("data.jsonl"),
      "' } num_threads: 1 economics { instruction: 'say' }"))["economics"];
  // "say alpha: ", mean over the eight names.
  EXPECT_LT(economics["prompt_tokens_with"].get<double>(), 13);
  EXPECT_NEAR(economics["prompt_tokens_with"].get<double>() -
                  economics["prompt_tokens_without"].get<double>(),
              3, 1e-9);
}

// It ends where the answer begins, also where the prompt is trained too.
TEST_F(PlanCommand, PromptsThatAreTrainedOnAreCountedWhole) {
  const auto prompt = [&](const char* trained) {
    return Report(absl::StrCat(
        "model: '", Path("base"), "' data { max_length: 64 train_file: '", Path("data.jsonl"),
        "' train_on_prompt: ", trained,
        " } num_threads: 1 economics { instruction: 'Answer:' }"))["economics"]
                                                                  ["prompt_tokens_without"]
                                                                      .get<double>();
  };
  EXPECT_GT(prompt("false"), 4);  // "say alpha: "
  EXPECT_EQ(prompt("true"), prompt("false"));
}

TEST_F(PlanCommand, TextHasNoPromptToCount) {
  Write("text.jsonl", "{\"text\": \"say alpha: alpha\"}\n{\"text\": \"say beta: beta\"}\n");
  const nlohmann::json economics = Report(absl::StrCat(
      "model: '", Path("base"), "' data { max_length: 64 train_file: '", Path("text.jsonl"),
      "' format: TEXT } num_threads: 1 economics { instruction: 'Answer:' calls_per_day: 1e6 }"))
      ["economics"];
  EXPECT_EQ(economics["prompt_tokens_with"].get<double>(), 0);
  EXPECT_EQ(economics["tokens_saved_per_day"].get<double>(), 0);
  EXPECT_EQ(economics["prompts_uncounted"],
            "what a call saves is unknown: no sample of the data has a prompt");
  EXPECT_THAT(Read("report/plan_report.txt"), HasSubstr("no sample of the data has a prompt"));
}

TEST(Doctor, NamesWhatIsThereAndWhatIsNot) {
  const CommandResult result = RunEngine({"doctor"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  for (const char* line : {"cpu ", "paths ", "rate bf16", "memory ", "gpu ", "libmpi.so.40",
                           "memlock", "cpu_isa: AUTO takes"}) {
    EXPECT_THAT(result.out, HasSubstr(line));
  }
}

TEST_F(PlanCommand, AGateThatIsMissedEndsWith79AndLeavesTheResults) {
  job_ += "eval { per_device_eval_batch_size: 4 } gates { max_eval_loss_increase: -50 }\n";
  data_ = "format: PROMPT_COMPLETION eval_fraction: 0.25";
  const CommandResult missed = Run("train");
  EXPECT_EQ(missed.exit_code, 79) << missed.err;
  EXPECT_THAT(missed.err, HasSubstr("gates.max_eval_loss_increase missed"));
  EXPECT_TRUE(std::filesystem::exists(Path("out/adapter_model.safetensors")));
  // The same command, with a gate that can be passed: the run is done and only judged again.
  const CommandResult passed = Run("train", {"--set", "gates.max_eval_loss_increase=50"});
  EXPECT_EQ(passed.exit_code, 0) << passed.err;
  EXPECT_THAT(passed.out, HasSubstr("gates.max_eval_loss_increase passed"));
}

// In the user's cache folder, for whatever is planned on this machine next.
TEST_F(PlanCommand, PredictionsOfPastRunsAreHeldAgainstWhatTheyMade) {
  const CommandOptions options{.launcher = {"env", "XDG_CACHE_HOME=" + Path("cache")}};
  WriteJob();
  const auto run = [&](const std::string& command, const std::vector<std::string>& more = {}) {
    std::vector<std::string> words = {command, Path("job.textproto")};
    words.insert(words.end(), more.begin(), more.end());
    const CommandResult result = RunEngine(words, options);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result;
  };
  EXPECT_THAT(run("plan").out, Not(HasSubstr("predictions of")));
  EXPECT_THAT(run("train").out, HasSubstr("the plan predicted"));
  run("train");  // has nothing left to do
  run("train", {"--set", "output_dir=" + Path("other")});
  EXPECT_THAT(run("plan", {"--set", "plan.report=true"}).out,
              HasSubstr("predictions of 2 runs on this device were"));
  const auto report = nlohmann::json::parse(Read("out/plan_report.json"));
  const auto& time = report["time"];
  ASSERT_EQ(time["past_runs"].size(), 2u);
  double error = 0;
  for (const auto& past : time["past_runs"]) {
    EXPECT_EQ(Number(past["steps"]), 3);
    const double predicted = past["predicted_tokens_per_second"].get<double>();
    error += std::abs(predicted / past["tokens_per_second"].get<double>() - 1) / 2;
  }
  EXPECT_NEAR(time["past_error"].get<double>(), error, 1e-9);
  const auto& economics = report["economics"];
  EXPECT_GT(economics["training_hours_by_past"].get<double>(), 0);
  // One thread is another device than two.
  EXPECT_THAT(run("plan", {"--set", "num_threads=2"}).out, Not(HasSubstr("predictions of")));
}

TEST_F(PlanCommand, ARunWhoseSpeedCannotBeKeptIsNoneTheWorse) {
  WriteJob();
  const CommandOptions options{.launcher = {"env", "XDG_CACHE_HOME=/dev/null"}};
  const CommandResult result = RunEngine({"train", Path("job.textproto")}, options);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out + result.err, HasSubstr("speed is not kept for later plans"));
  EXPECT_EQ(RunEngine({"plan", Path("job.textproto")}, options).exit_code, 0);
}

TEST_F(PlanCommand, WhatNoMachineHasRoomForIsRefusedBeforeItIsReckoned) {
  Edit("base/config.json", "\"hidden_size\": 32", "\"hidden_size\": 1048576");
  Edit("base/config.json", "\"intermediate_size\": 48", "\"intermediate_size\": 1048576");
  Edit("base/config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 4096");
  std::filesystem::remove(Path("base/model.safetensors"));
  for (const char* mode : {"QLORA", "LORA", "FULL"}) {
    Write("plan.textproto", absl::StrCat("model: '", Path("base"), "' mode: ", mode,
                                         " plan { card: 'H100' } data { max_length: 64 }"));
    const CommandResult result = RunEngine({"plan", Path("plan.textproto")});
    EXPECT_EQ(result.exit_code, 71) << result.err;
    EXPECT_THAT(result.err, HasSubstr("parameters"));
  }
}

TEST_F(PlanCommand, TheLargestFiguresThatMayBeGivenAreReckonedWith) {
  const nlohmann::json report = Report(
      Shape("llama_7b") +
          "plan { card: 'H100' memory: '9223372036854775807B' host_memory: '8388607TiB' "
          "memory_bytes_per_second: 1e18 flops_per_second: 1e21 world_size: 65536 "
          "network_bytes_per_second: 1e3 network_latency_seconds: 1 } data { max_length: 2048 } "
          "training { per_device_train_batch_size: 65536 gradient_accumulation_steps: 65536 }",
      0);
  EXPECT_EQ(Number(report["limit_bytes"]), std::numeric_limits<int64_t>::max());
  EXPECT_GT(Number(report["device_bytes"]), 0);
  EXPECT_GT(report["time"]["speed"]["step_seconds"].get<double>(), 0);
}

TEST_F(PlanCommand, LinearsKeptIn16BitsCountAlsoWithoutAFile) {
  const std::string job = Shape("llama_7b") + "plan { card: 'H100' explore: false }";
  const int64_t kept =
      Number(Report(job + "quantization { keep_in_16_bits: 'model.layers.0' }")["device_bytes"]);
  EXPECT_GT(kept, Number(Report(job)["device_bytes"]) + 202'375'168) << "12 bits more a weight";
}

TEST_F(PlanCommand, WhereNoSingleChangeFitsSeveralDo) {
  const nlohmann::json report = Report(
      absl::StrCat(Shape("qwen3_0.6b"),
                   "mode: FULL plan { card: 'L4' memory: '1.5GB' } data { max_length: 512 }"),
      71);
  ASSERT_EQ(report["changes"].size(), 1u);
  const std::string change = report["changes"][0]["change"].get<std::string>();
  EXPECT_THAT(change, HasSubstr("mode: QLORA"));
  EXPECT_THAT(change, HasSubstr(" and "));
  EXPECT_LE(Number(report["changes"][0]["device_bytes"]), 1'500'000'000);
}

// r = 16 on all linears of 7B are 40 million parameters.
TEST_F(PlanCommand, SharesAreGivenByTargetAndRank) {
  const nlohmann::json economics =
      Report(Shape("llama_7b") + "plan { card: 'H100' explore: false }")["economics"];
  int64_t by_target = 0;
  for (const auto& target : economics["targets"]) by_target += Number(target["parameters"]);
  EXPECT_EQ(by_target, 39'976'960);
  EXPECT_EQ(Number(economics["trained"]["parameters"]), by_target);
  EXPECT_EQ(Number(economics["trained"]["bytes"]), 2 * by_target);
  ASSERT_EQ(economics["ranks"].size(), 7u);
  for (const auto& rank : economics["ranks"]) {
    const int64_t r = std::stoll(rank["name"].get<std::string>().substr(4));
    EXPECT_EQ(Number(rank["parameters"]), by_target / 16 * r);
  }
}

TEST_F(PlanCommand, ASweepIsPlannedAsOneRun) {
  const std::string job = Shape("llama_7b") + "plan { card: 'H100' } data { max_length: 512 }";
  const nlohmann::json one = Report(job);
  const nlohmann::json four = Report(job + "sweep { ranks: 4 ranks: 8 ranks: 16 ranks: 32 }");
  EXPECT_EQ(Number(four["adapters"]), 4);
  EXPECT_EQ(Number(four["time"]["tokens_per_step"]), 4 * Number(one["time"]["tokens_per_step"]));
  EXPECT_LT(Number(four["device_bytes"]), Number(one["device_bytes"]) * 3);
  EXPECT_GT(Number(four["device_bytes"]), Number(one["device_bytes"]));
  // Rows that fill a pass have it for themselves: adapters take room for their states only.
  EXPECT_LE(Number(four["largest_batch"]), Number(one["largest_batch"]));
  EXPECT_GT(2 * Number(four["largest_batch"]), Number(one["largest_batch"]));
  EXPECT_EQ(four["economics"]["ranks"][3]["name"], "r32");
  Write("plan.textproto", job + "sweep { tolerance: 0.1 }");
  const CommandResult empty = RunEngine({"plan", Path("plan.textproto")});
  EXPECT_EQ(empty.exit_code, 64) << empty.err;
  EXPECT_THAT(empty.err, HasSubstr("sweep: not given"));
}

TEST_F(PlanCommand, AdaptersPassInGroupsOfRowsEnoughOrThatFit) {
  const std::string job =
      Shape("qwen3_1.7b") +
      "training { recompute: NONE optim: ADAMW_32BIT } data { max_length: 512 }\n";
  const std::string eight = "sweep { ranks: 8 seeds: [1, 2, 3, 4, 5, 6, 7, 8] }\n";
  const auto groups_of = [](const nlohmann::json& report) {
    const std::string choice = report["choices"].back().get<std::string>();
    const size_t number = choice.find(" in ");
    return number == std::string::npos ? 1 : std::stoll(choice.substr(number + 4));
  };
  const nlohmann::json one = Report(job + "plan { card: 'H100' explore: false }");
  const nlohmann::json many = Report(job + eight + "plan { card: 'H100' explore: false }");
  EXPECT_EQ(groups_of(one), 1);
  EXPECT_EQ(groups_of(many), 2);
  EXPECT_EQ(Number(many["time"]["tokens_per_step"]), 8 * Number(one["time"]["tokens_per_step"]));
  const nlohmann::json tight =
      Report(absl::StrCat(job, eight, "plan { card: 'H100' explore: false memory: '",
                          Number(many["device_bytes"]) - 1, "B' }"));
  EXPECT_TRUE(tight["fits"].get<bool>());
  EXPECT_EQ(groups_of(tight), 4);
  EXPECT_LT(Number(tight["device_bytes"]), Number(many["device_bytes"]));
}

}  // namespace
}  // namespace qlora::tests
