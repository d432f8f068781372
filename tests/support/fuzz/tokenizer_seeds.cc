// Seeds of tokenizers: few tokens, one of each part that a file may have.
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/text/word_pattern.h"
#include "tests/engine/data/byte_tokenizer.h"
#include "tests/engine/text/word_patterns.h"
#include "tests/support/fuzz/seeds.h"

namespace qlora::tests {
namespace {

void AddSoundTokenizers(const Seeds& seeds) {
  const std::string text = "ab  <s>A\xc3\xa9 1\n";
  const auto add = [&](const char* name, const std::string& parts, const std::string& model) {
    seeds.Add("tokenizer", name,
              absl::StrCat("{", parts, "\"model\":{\"type\":\"BPE\",", model, "}}", kNul,
                           R"({"bos_token":"<s>","eos_token":{"content":"<s>"}})", kNul, text));
  };
  const std::string added =
      R"("added_tokens":[{"id":3,"content":"<s>","single_word":false,"lstrip":true,"rstrip":true,)"
      R"("normalized":false,"special":true}],)";
  const std::string model = R"("vocab":{"a":0,"b":1,"ab":2},"merges":[["a","b"]])";
  add("plain", "", model);
  add("byte_level",
      added + R"("pre_tokenizer":{"type":"ByteLevel","add_prefix_space":true,"use_regex":true},)"
              R"("decoder":{"type":"ByteLevel"},)",
      R"("vocab":{"a":0,"b":1,"ab":2},"merges":["a b"],"ignore_merges":true)");
  add("sequence",
      added + R"("normalizer":{"type":"Sequence","normalizers":[{"type":"NFC"},{"type":"Prepend",)"
              R"("prepend":"a"},{"type":"Replace","pattern":{"String":" "},"content":"b"}]},)"
              R"("pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":)"
              R"({"Regex":"\\s+(?!\\S)|\\p{L}+"},"behavior":"Isolated","invert":false},)"
              R"({"type":"Digits","individual_digits":true}]},)",
      model);
  add("metaspace",
      R"("pre_tokenizer":{"type":"Metaspace","replacement":"▁","prepend_scheme":"first"},)"
      R"("decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},)"
      R"("content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ",)"
      R"("start":1,"stop":0}]},)",
      R"("vocab":{"<unk>":0,"a":1,"b":2,"▁":3,"<0xC3>":4,"<0xA9>":5},"merges":[],)"
      R"("byte_fallback":true,"unk_token":"<unk>","fuse_unk":true)");
  add("template",
      added + R"("post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":)"
              R"("<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[],)"
              R"("special_tokens":{"<s>":{"id":"<s>","ids":[3],"tokens":["<s>"]}}},)",
      model);
}

// A good file with a merge patch (RFC 7396) applied to it, and to its config.
void AddPatched(const Seeds& seeds, const std::string& name, const std::string& patch,
                const std::string& config, const std::string& text) {
  auto file = nlohmann::json::parse(
      R"({"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2,"<s>":3},"merges":[["a","b"]]}})");
  file.merge_patch(nlohmann::json::parse(patch));
  seeds.Add("tokenizer", name, file.dump() + kNul + config + kNul + text);
}

// Each part, where it is something else than it must be.
void AddFaultyTokenizers(const Seeds& seeds) {
  int number = 0;
  for (const char* patch : {
           R"({"model":7})",
           R"({"model":{"type":7}})",
           R"({"model":{"type":"WordPiece"}})",
           R"({"model":{"vocab":null}})",
           R"({"model":{"merges":null}})",
           R"({"model":{"vocab":[]}})",
           R"({"model":{"merges":{}}})",
           R"({"model":{"continuing_subword_prefix":"##"}})",
           R"({"model":{"end_of_word_suffix":7}})",
           R"({"model":{"dropout":"x"}})",
           R"({"model":{"dropout":0.1}})",
           R"({"model":{"unk_token":7}})",
           R"({"model":{"unk_token":"<unk>"}})",
           R"({"model":{"fuse_unk":7}})",
           R"({"model":{"merges":[["a","x"]]}})",
           R"({"model":{"merges":["x b"]}})",
           R"({"model":{"merges":["#version: 0.2","a b c"]}})",
           R"({"model":{"merges":[["a","b","c"]]}})",
           R"({"model":{"merges":[7]}})",
           R"({"model":{"merges":[[7]]}})",
           R"({"model":{"merges":[{}]}})",
           R"({"model":{"merges":[[[]]]}})",
           R"({"model":{"vocab":{"a":-1}}})",
           R"({"model":{"vocab":{"a":99999999999}}})",
           R"({"model":{"vocab":{"a":"x"}}})",
           R"({"model":{"vocab":{"a":[]}}})",
           R"({"model":{"vocab":{"a":{}}}})",
           R"({"model":{"vocab":{"a":true}}})",
           R"({"model":{"vocab":{"a":0.5}}})",
           R"({"model":{"vocab":{"a":1}}})",
           R"({"surprise":7})",
           R"({"added_tokens":7})",
           R"({"added_tokens":[{"id":-1,"content":"x"}]})",
           R"({"added_tokens":[{"id":"x","content":"x"}]})",
           R"({"added_tokens":[{"id":4,"content":""}]})",
           R"({"added_tokens":[{"id":4,"content":7}]})",
           R"({"added_tokens":[{"id":4,"content":"x","special":7}]})",
           R"({"added_tokens":[{"id":4,"content":"x"},{"id":5,"content":"x"}]})",
           R"({"added_tokens":[{"id":9,"content":"x"}]})",
           R"({"added_tokens":[{"id":9,"content":"a"}]})",
           R"({"normalizer":7})",
           R"({"normalizer":{}})",
           R"({"normalizer":{"type":"NFKC"}})",
           R"({"normalizer":{"type":"Sequence","normalizers":7}})",
           R"({"normalizer":{"type":"Prepend","prepend":7}})",
           R"({"normalizer":{"type":"Replace","content":7}})",
           R"({"normalizer":{"type":"Replace","pattern":7}})",
           R"({"normalizer":{"type":"Replace","pattern":{"Glob":"*"}}})",
           R"({"pre_tokenizer":{"type":"Whitespace"}})",
           R"({"pre_tokenizer":{"type":"Sequence","pretokenizers":7}})",
           R"({"pre_tokenizer":{"type":"Digits","individual_digits":7}})",
           R"({"pre_tokenizer":{"type":"Split","pattern":{"String":"a"},"behavior":7}})",
           R"({"pre_tokenizer":{"type":"Split","pattern":{"String":"a"},"behavior":"x"}})",
           R"({"pre_tokenizer":{"type":"Split","pattern":{"String":""},"invert":7}})",
           R"({"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":7}})",
           R"({"pre_tokenizer":{"type":"ByteLevel","use_regex":7}})",
           R"({"pre_tokenizer":{"type":"Metaspace","replacement":7}})",
           R"({"pre_tokenizer":{"type":"Metaspace","replacement":"ab"}})",
           R"({"pre_tokenizer":{"type":"Metaspace","add_prefix_space":7}})",
           R"({"pre_tokenizer":{"type":"Metaspace","prepend_scheme":7}})",
           R"({"pre_tokenizer":{"type":"Metaspace","prepend_scheme":"x"}})",
           R"({"pre_tokenizer":{"type":"Metaspace","add_prefix_space":false,)"
           R"("prepend_scheme":"first"}})",
           R"({"pre_tokenizer":{"type":"Metaspace","split":7}})",
           R"({"post_processor":{"type":"BertProcessing"}})",
           R"({"post_processor":{"type":"Sequence","processors":[{"type":"x"}]}})",
           R"({"post_processor":{"type":"TemplateProcessing","single":7}})",
           R"({"post_processor":{"type":"TemplateProcessing","single":[7]}})",
           R"({"post_processor":{"type":"TemplateProcessing","single":[]}})",
           R"({"post_processor":{"type":"TemplateProcessing","single":[{"X":{"id":"B"}}]}})",
           R"({"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":)"
           R"({"id":"<s>"}}]}})",
           R"({"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":)"
           R"({"id":"<s>"}}],"special_tokens":{"<s>":{"ids":["x"]}}}})",
           R"({"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":)"
           R"({"id":"<s>"}},{"Sequence":{"id":"A"}}],"special_tokens":{"<s>":{"ids":[99]}}}})",
           R"({"decoder":{"type":"WordPiece"}})",
           R"({"decoder":{"type":"Sequence","decoders":7}})",
           R"({"decoder":{"type":"Strip","content":7}})",
           R"({"decoder":{"type":"Strip","start":-1}})",
           R"({"decoder":{"type":"Strip","start":"x"}})",
           R"({"decoder":{"type":"Strip","stop":"x"}})",
           R"({"decoder":{"type":"Replace","content":7}})",
           R"({"decoder":{"type":"Replace"}})",
           R"({"decoder":{"type":"Metaspace","replacement":7}})",
           R"({"decoder":{"type":"Metaspace","replacement":""}})",
           R"({"decoder":{"type":"Metaspace","add_prefix_space":7}})",
           R"({"decoder":{"type":"Metaspace","prepend_scheme":7}})",
       }) {
    AddPatched(seeds, absl::StrCat("fault_", number++), patch, "", "ab");
  }
  number = 0;
  for (const char* regex :
       {"a\\", "\\pL", "\\x41", "\\R", "[[a]]", "[a&&b]", "(?<n>a)", "(*FAIL)", "a{2}+", "("}) {
    const nlohmann::json part = {
        {"normalizer", {{"type", "Replace"}, {"content", "b"}, {"pattern", {{"Regex", regex}}}}}};
    AddPatched(seeds, absl::StrCat("regex_", number++), part.dump(), "", "ab");
  }
  number = 0;
  for (const char* config : {"{", "[]", R"({"bos_token":7})", R"({"eos_token":{"content":7}})"}) {
    AddPatched(seeds, absl::StrCat("config_", number++), "{}", config, "ab");
  }
  for (const char* text :
       {"[]", "7", R"({"model":{},"model":{}})", R"({"model":{"vocab":{"a":0,"a":1}}})"}) {
    seeds.Add("tokenizer", absl::StrCat("text_", number++), text);
  }
  std::string deep;
  for (int i = 0; i < 40; ++i) deep += "[";
  seeds.Add("tokenizer", "depth", "{\"added_tokens\":" + deep);
}

// Texts that reach every alternative of the word patterns.
void AddWordPatterns(const Seeds& seeds) {
  const std::string text =
      "I'LL pay' 12345!\r\n\n  now  XMLHttpRequest a/b\n/ McDonald's USA'S \u00e9\u0301\u4e2d "
      "it's we're I've I'm he'd don't 'x \u01c5\u02b0 \t\n x";
  int number = 0;
  for (const std::string regex :
       {engine::kLlama3, engine::kQwen2, engine::kQwen35, engine::kTekken, engine::kO200k,
        engine::kGpt2Pattern.data(), "[^\\s\\Sx]|\\s+|\\S|"}) {
    const nlohmann::json part = {
        {"pre_tokenizer",
         {{"type", "Sequence"},
          {"pretokenizers",
           {{{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}},
            {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}}}};
    AddPatched(seeds, absl::StrCat("words_", number++), part.dump(), "", text);
  }
  number = 0;
  for (const char* behavior :
       {"Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous", "Isolated"}) {
    const nlohmann::json part = {{"pre_tokenizer",
                                  {{"type", "Split"},
                                   {"pattern", {{"String", "a"}}},
                                   {"invert", number == 4},
                                   {"behavior", behavior}}}};
    AddPatched(seeds, absl::StrCat("split_", number++), part.dump(), "", "baabab");
  }
}

// What needs a vocabulary of its own: all bytes, words of more than 32 symbols, tokens in pieces.
void AddVocabularies(const Seeds& seeds) {
  auto file = nlohmann::json::parse(engine::ByteTokenizerFiles().first);
  const nlohmann::json bytes = {
      {"model", {{"vocab", file["model"]["vocab"]}, {"merges", {"q z"}}, {"ignore_merges", true}}},
      {"pre_tokenizer", {{"type", "ByteLevel"}}},
      {"decoder", {{"type", "ByteLevel"}}}};
  const std::string text = "qz qz q" + std::string(40, 'z') + " \xc3\xa9";
  seeds.Add("tokenizer", "bytes", bytes.dump() + kNul + kNul + text);
  std::string longer;
  for (int i = 0; i < 30; ++i) longer += "abb";
  AddPatched(seeds, "long_word", "{}", "", longer);
  AddPatched(seeds, "ignored_merges", R"({"model":{"ignore_merges":true}})", "", "ab");
  AddPatched(seeds, "unknown",
             R"({"model":{"vocab":{"<unk>":4,"<0xC3>":5,"<0xA9>":6},"unk_token":"<unk>",)"
             R"("byte_fallback":true},"decoder":{"type":"ByteFallback"}})",
             "",
             "a\xc3\xa9xy\xe4\xb8\xad"
             "b");
  AddPatched(
      seeds, "added",
      R"({"added_tokens":[{"id":4,"content":"<|x|>","lstrip":true,"rstrip":true},)"
      R"({"id":5,"content":"y","single_word":true},{"id":6,"content":"z","normalized":true},)"
      R"({"id":7,"content":"zz","normalized":true,"special":true}],)"
      R"("normalizer":{"type":"Sequence","normalizers":[{"type":"NFD"},{"type":"NFC"}]},)"
      R"("decoder":{"type":"Metaspace"}})",
      R"({"bos_token":"<s>","eos_token":{"content":"y"},"pad_token":null,"unk_token":"z",)"
      R"("additional_special_tokens":["zz",{"content":"a"}],"extra_special_tokens":7,)"
      R"("added_tokens_decoder":{"4":{"content":"<|x|>","special":true},"5":7}})",
      "a <|x|> y ay y z zz \xc3\xa9<|x|>");
}

}  // namespace

void AddTokenizerSeeds(const Seeds& seeds) {
  AddSoundTokenizers(seeds);
  AddFaultyTokenizers(seeds);
  AddWordPatterns(seeds);
  AddVocabularies(seeds);
}

}  // namespace qlora::tests
