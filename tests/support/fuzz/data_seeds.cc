// Seeds of training data.
#include "proto/job.pb.h"
#include "tests/support/fuzz/seeds.h"

namespace qlora::tests {

void AddDataSeeds(const Seeds& seeds) {
  const auto format = [](proto::DataFormat::Value value) { return std::string(1, char(value)); };
  const std::string any = format(proto::DataFormat::AUTO);
  // The settings that fuzz_text.cc takes from the same byte.
  seeds.Add("records", "whole_string",
            "\x18"
            R"({"prompt":"a q","completion":"z b"})");
  seeds.Add("records", "newlines",
            "\x60"
            R"({"messages":[{"role":"user","content":"u"},{"role":"assistant",)"
            R"("content":"a"},{"role":"user","content":"v"}]})");
  seeds.Add("records", "trained_prompt",
            "\x08"
            R"({"messages":[{"role":"user","content":"\u2003u \u001c"}]})");
  seeds.Add("records", "text", any + "{\"text\":\"a\"}\r\n\n{\"text\":\"\\u00e9\"}");
  seeds.Add("records", "pair", any + R"({"prompt":"a qz","completion":"b<|eot_id|>"})");
  seeds.Add("records", "turns",
            any + R"({"messages":[{"role":"system","content":"s"},{"role":"user","content":)"
                  R"([{"type":"text","text":"u"}]},{"role":"assistant","content":"a"}]})");
  seeds.Add("records", "sharegpt",
            any + R"({"conversations":[{"from":"human","value":"u"},{"from":"gpt","value":"a"}]})");
  seeds.Add("records", "alpaca", any + R"({"instruction":"i","input":"","output":"o"})");
  seeds.Add("records", "ids", any + R"({"input_ids":[1,2,3],"labels":[-100,2,3]})");
  seeds.Add("records", "mask",
            format(proto::DataFormat::PRETOKENIZED) +
                R"({"input_ids":[1,2,3],"labels":[-100,2,-100],"attention_mask":[1,1,0]})");
  seeds.Add("records", "weights",
            any +
                R"({"messages":[{"role":"user","content":"u","weight":0},{"role":"assistant",)"
                R"("content":"a","weight":1},{"role":"assistant","content":"b","train":false}]})");
  seeds.Add("records", "turns_in_pairs",
            any + R"({"prompt":[{"role":"assistant","content":" a "}],)"
                  R"("completion":[{"role":"assistant","content":"b"}]})");
  seeds.Add("records", "alpaca_input", any + R"({"instruction":"i","input":"n","output":"o"})");
  seeds.Add("records", "lines",
            any + "\xef\xbb\xbf\n\r\n[]\n{\"x\":1}\n{\"text\":7}\n\xff\n{\n{\"text\":\"t\"}");
  seeds.Add("records", "utf16", any + "\xff\xfe{");
  // A fault in each line.
  seeds.Add("records", "faulty_turns", format(proto::DataFormat::MESSAGES) + R"({}
{"messages":[],"tools":[{}]}
{"messages":7}
{"messages":[]}
{"messages":[7]}
{"messages":[{"role":"user","tool_calls":[{}]}]}
{"messages":[{"content":"c"}]}
{"messages":[{"role":"user"}]}
{"messages":[{"role":"user","content":7}]}
{"messages":[{"role":"user","content":[{"type":"image"}]}]}
{"messages":[{"role":"user","content":null,"train":"yes"}]}
{"messages":[{"role":"user","content":"c","weight":2}]}
{"messages":[{"role":"tool","content":"c"}]}
{"messages":[{"role":"user","content":"c"},{"role":"system","content":"c"}]}
{"messages":[{"role":"user","content":"c","train":true}]})");
  seeds.Add("records", "faulty_pairs", format(proto::DataFormat::PROMPT_COMPLETION) + R"({}
{"prompt":"p"}
{"prompt":[],"completion":[]}
{"prompt":7,"completion":"c"}
{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"i":9,"j":10,"k":11})");
  seeds.Add("records", "faulty_alpaca", format(proto::DataFormat::ALPACA) + R"({}
{"instruction":"i"}
{"instruction":"i","output":"o","input":7})");
  seeds.Add("records", "faulty_ids", format(proto::DataFormat::PRETOKENIZED) + R"({}
{"input_ids":7}
{"input_ids":[4294967296]}
{"input_ids":[1],"labels":[1,2]}
{"input_ids":[1],"labels":"x"}
{"input_ids":[1],"attention_mask":[1,1]}
{"input_ids":[1,2,3],"attention_mask":[1,0,1]}
{"input_ids":[1],"labels":[2]})");
}

}  // namespace qlora::tests
