#include "engine/lora/targets.h"

#include <cmath>
#include <string>
#include <vector>

#include "engine/lora/full_match.h"
#include "engine/lora/nearest_name.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/exit_codes.h"

namespace qlora::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

ModelSpec TinySpec() {
  ModelSpec spec;
  spec.hidden = 32;
  spec.layers = 3;
  spec.query_heads = 4;
  spec.kv_heads = 2;
  spec.head_size = 10;
  spec.intermediate = 48;
  spec.vocab = 96;
  spec.qkv_bias = spec.qk_norm = true;
  return spec;
}

proto::Lora Targets(const std::vector<std::string>& names) {
  proto::Lora lora;
  lora.set_r(4);
  lora.set_lora_alpha(8);
  for (const std::string& name : names) lora.add_target_modules(name);
  return lora;
}

proto::Lora Regex(const std::string& pattern) {
  proto::Lora lora = Targets({});
  lora.set_target_modules_regex(pattern);
  return lora;
}

absl::StatusOr<LoraTargets> Resolve(const proto::Lora& lora, const ModelSpec& spec = TinySpec()) {
  return ResolveLoraTargets(lora, WeightRows(spec));
}

std::vector<std::string> Modules(const proto::Lora& lora) {
  const absl::StatusOr<LoraTargets> targets = Resolve(lora);
  EXPECT_TRUE(targets.ok()) << targets.status();
  std::vector<std::string> modules;
  if (targets.ok()) {
    for (const AdaptedModule& module : targets->modules) modules.push_back(module.module);
  }
  return modules;
}

std::string Error(const proto::Lora& lora) {
  const absl::Status status = Resolve(lora).status();
  EXPECT_EQ(proto::ExitCodeOf(status), proto::kExitBadJob) << status;
  return std::string(status.message());
}

TEST(LoraTargets, AllLinear) {
  const std::vector<WeightRow> rows = WeightRows(TinySpec());
  const absl::StatusOr<LoraTargets> targets = Resolve(Targets({"all-linear"}));
  ASSERT_TRUE(targets.ok()) << targets.status();
  ASSERT_EQ(targets->modules.size(), 21u);
  int64_t last = -1;
  for (const AdaptedModule& module : targets->modules) {
    const WeightRow& row = rows[module.row];
    EXPECT_GT(module.row, last);
    last = module.row;
    EXPECT_EQ(row.name, module.module + ".weight");  // never the bias
    EXPECT_EQ(module.in, row.cols);
    EXPECT_EQ(module.out, row.rows);
    EXPECT_EQ(module.layer, row.layer);
    EXPECT_EQ(module.rank, 4);
    EXPECT_EQ(module.scaling, 2.0f);
  }
  EXPECT_THAT(targets->suffixes, ElementsAre("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj",
                                             "up_proj", "v_proj"));
  // Per layer, r · (in + out): q 32+40, k and v 32+20, o 40+32, gate and up 32+48, down 48+32.
  EXPECT_EQ(targets->ParameterCount(), 3 * 4 * (72 + 2 * 52 + 72 + 3 * 80));
}

TEST(LoraTargets, KeysAreThoseOfPeft) {
  const AdaptedModule module = Resolve(Targets({"k_proj"}))->modules[1];
  EXPECT_EQ(module.KeyA(), "model.layers.1.self_attn.k_proj.lora_A.weight");
  EXPECT_EQ(module.KeyB(), "model.layers.1.self_attn.k_proj.lora_B.weight");
  EXPECT_EQ(module.in, 32);
  EXPECT_EQ(module.out, 20);
}

TEST(LoraTargets, ScalingWithRsLora) {
  proto::Lora lora = Targets({"all-linear"});
  lora.set_r(5);
  lora.set_lora_alpha(16);
  EXPECT_EQ(Resolve(lora)->modules[0].scaling, static_cast<float>(16.0 / 5.0));
  lora.set_use_rslora(true);
  EXPECT_EQ(Resolve(lora)->modules[0].scaling, static_cast<float>(16.0 / std::sqrt(5.0)));
}

TEST(LoraTargets, ByName) {
  EXPECT_THAT(Modules(Targets({"q_proj"})),
              ElementsAre("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj",
                          "model.layers.2.self_attn.q_proj"));
}

TEST(LoraTargets, OrderIsTheModelsNotTheJobs) {
  EXPECT_EQ(Modules(Targets({"down_proj", "q_proj"})), Modules(Targets({"q_proj", "down_proj"})));
  EXPECT_EQ(Modules(Targets({"down_proj", "q_proj"}))[0], "model.layers.0.self_attn.q_proj");
}

TEST(LoraTargets, BySuffixOfSeveralComponents) {
  EXPECT_EQ(Modules(Targets({"mlp.up_proj"})).size(), 3u);
}

TEST(LoraTargets, ByFullPathsOfAllLayers) {
  const absl::StatusOr<LoraTargets> targets = Resolve(Targets(
      {"model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj", "model.layers.2.mlp.up_proj"}));
  ASSERT_TRUE(targets.ok()) << targets.status();
  EXPECT_EQ(targets->modules.size(), 3u);
  EXPECT_THAT(targets->suffixes, ElementsAre("up_proj"));
}

TEST(LoraTargets, NamesThatOverlapOrRepeatGiveEachModuleOnce) {
  EXPECT_EQ(Modules(Targets({"q_proj", "self_attn.q_proj", "q_proj"})).size(), 3u);
}

TEST(LoraTargets, ASuffixStartsAtADot) {
  EXPECT_THAT(Error(Targets({"proj"})), HasSubstr("\"proj\" matches no linear layer"));
  EXPECT_THAT(Error(Targets({"_proj"})), HasSubstr("matches no linear layer"));
  EXPECT_THAT(Error(Targets({""})), HasSubstr("target_modules[0]: \"\" matches no linear layer"));
}

TEST(LoraTargets, ContainersAreNoTargets) {
  EXPECT_THAT(Error(Targets({"self_attn"})), HasSubstr("\"self_attn\" matches no linear layer"));
}

TEST(LoraTargets, UnknownNameGetsSuggestions) {
  const std::string message = Error(Targets({"q_proj", "v_prj", "gate"}));
  EXPECT_THAT(message, HasSubstr("lora.target_modules[1]: \"v_prj\" matches no linear layer. "
                                 "Nearest: v_proj, "));
  EXPECT_THAT(message, HasSubstr("lora.target_modules[2]: \"gate\""));  // all at once
  EXPECT_THAT(Error(Targets({"model.layers.9.mlp.up_proj"})),
              HasSubstr("Nearest: model.layers.0.mlp.up_proj"));
  EXPECT_THAT(Error(Targets({"c_attn_something_else"})),
              HasSubstr("Allowed: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"));
}

TEST(LoraTargets, HeadIsRefusedWithAReason) {
  const std::string message = Error(Targets({"q_proj", "lm_head"}));
  EXPECT_THAT(message, HasSubstr("target_modules[1]: \"lm_head\" matches lm_head"));
  EXPECT_THAT(message, HasSubstr("output head stays frozen"));
}

TEST(LoraTargets, EmbeddingIsRefusedWithAReason) {
  for (const char* name : {"embed_tokens", "model.embed_tokens"}) {
    EXPECT_THAT(Error(Targets({name})), HasSubstr("embedding stays frozen"));
  }
}

TEST(LoraTargets, NormIsNoLinear) {
  EXPECT_THAT(Error(Targets({"input_layernorm"})),
              HasSubstr("matches input_layernorm, which is no linear layer"));
}

TEST(LoraTargets, NothingGiven) {
  EXPECT_THAT(Error(Targets({})), HasSubstr("lora.target_modules: found nothing"));
}

TEST(LoraTargets, AllLinearStandsAlone) {
  EXPECT_THAT(Error(Targets({"q_proj", "all-linear"})),
              HasSubstr("target_modules[1]: found \"all-linear\" beside other names"));
}

TEST(LoraTargets, UnevenIsAnErrorUnlessAllowed) {
  proto::Lora lora = Targets({"q_proj", "model.layers.1.mlp.up_proj"});
  EXPECT_THAT(Error(lora), HasSubstr("mlp.up_proj is matched in layers 1 but not in 0,2"));
  lora.set_allow_uneven_targets(true);
  const absl::StatusOr<LoraTargets> targets = Resolve(lora);
  ASSERT_TRUE(targets.ok()) << targets.status();
  EXPECT_EQ(targets->modules.size(), 4u);
  // "up_proj" would be read back as all three: the path stands instead.
  EXPECT_THAT(targets->suffixes, ElementsAre("model.layers.1.mlp.up_proj", "q_proj"));
}

TEST(LoraTargets, AllowUnevenDoesNotAllowUnmatched) {
  proto::Lora lora = Targets({"q_proj", "w_proj"});
  lora.set_allow_uneven_targets(true);
  EXPECT_THAT(Error(lora), HasSubstr("\"w_proj\" matches no linear layer"));
}

TEST(LoraTargets, RegexMatchesWholePaths) {
  EXPECT_EQ(Modules(Regex(R"(.*\.(q|v)_proj)")).size(), 6u);
  EXPECT_EQ(Modules(Regex(R"(model\.layers\.\d+\.mlp\..*)")).size(), 9u);
  EXPECT_THAT(Error(Regex("q_proj")), HasSubstr("\"q_proj\" matches no linear layer"));
  EXPECT_THAT(Error(Regex(R"(.*\.q_pro)")), HasSubstr("matches no linear layer"));
}

TEST(LoraTargets, RegexPassesNormsBy) {
  EXPECT_EQ(Modules(Regex(R"(model\.layers\..*)")).size(), 21u);
  EXPECT_THAT(Error(Regex(R"(.*norm)")), HasSubstr("matches no linear layer"));
}

TEST(LoraTargets, RegexOverHeadOrEmbeddingIsRefused) {
  const std::string message = Error(Regex(".*"));
  EXPECT_THAT(message, HasSubstr("matches lm_head"));
  EXPECT_THAT(message, HasSubstr("matches model.embed_tokens"));
}

TEST(LoraTargets, RegexUneven) {
  EXPECT_THAT(Error(Regex(R"(model\.layers\.[01]\.self_attn\.k_proj)")),
              HasSubstr("self_attn.k_proj is matched in layers 0-1 but not in 2"));
}

TEST(LoraTargets, RegexThatIsNone) {
  EXPECT_THAT(Error(Regex("(q|v_proj")), HasSubstr("not valid at byte 9"));
  EXPECT_THAT(Error(Regex("*")), HasSubstr("lora.target_modules_regex: the regular expression"));
}

TEST(LoraTargets, RegexThatNeverEnds) {
  EXPECT_THAT(Error(Regex(R"((([a-z_.0-9]*)*)*\d\d\d\d)")), HasSubstr("fails on"));
}

TEST(LoraTargets, NamesAndRegexExcludeEachOther) {
  proto::Lora lora = Targets({"q_proj"});
  lora.set_target_modules_regex(".*v_proj");
  EXPECT_THAT(Error(lora), HasSubstr("found both"));
}

TEST(LoraTargets, RankAndAlphaOutOfRange) {
  proto::Lora lora = Targets({"q_proj"});
  lora.set_r(0);
  lora.set_lora_alpha(-1);
  const std::string message = Error(lora);
  EXPECT_THAT(message, HasSubstr("lora.r: found 0"));
  EXPECT_THAT(message, HasSubstr("lora.lora_alpha: found -1"));
}

TEST(LoraTargets, TableTellsWhatEachTargetMatched) {
  const std::string table = Resolve(Targets({"q_proj", "mlp.down_proj"}))->table;
  EXPECT_THAT(table, HasSubstr("q_proj         self_attn.q_proj           32 -> 40  0-2 (3 of 3)"));
  EXPECT_THAT(table, HasSubstr("mlp.down_proj  mlp.down_proj              48 -> 32  0-2 (3 of 3)"));
  proto::Lora uneven = Regex(R"(model\.layers\.[02]\.mlp\.up_proj)");
  uneven.set_allow_uneven_targets(true);
  EXPECT_THAT(Resolve(uneven)->table, HasSubstr("0,2 (2 of 3)"));
}

TEST(FullMatch, BacktracksForAMatchThatReachesTheEnd) {
  const auto matches = [](const char* pattern, const char* text) {
    return *FullMatch::Compile(pattern)->Matches(text);
  };
  EXPECT_TRUE(matches("a|ab", "ab"));  // as re.fullmatch: the first branch alone would stop short
  EXPECT_FALSE(matches("a", "ab"));
  EXPECT_FALSE(matches("b", "ab"));
  EXPECT_TRUE(matches("a.*?", "abc"));
  EXPECT_FALSE(matches("A", "a"));
  EXPECT_TRUE(matches("(?i)A", "a"));
  EXPECT_FALSE(FullMatch::Compile("\xff").ok());
}

TEST(NearestNames, AreSortedByDistance) {
  EXPECT_EQ(EditDistance("", "abc"), 3);
  EXPECT_EQ(EditDistance("kitten", "sitting"), 3);
  EXPECT_EQ(EditDistance("q_proj", "q_proj"), 0);
  EXPECT_THAT(NearestNames("abcd", {"xyzw", "abxx", "abcx", "abcd", "zbcd"}),
              ElementsAre("abcd", "abcx", "zbcd"));
  EXPECT_THAT(NearestNames("", {"a"}), IsEmpty());
}

}  // namespace
}  // namespace qlora::engine
