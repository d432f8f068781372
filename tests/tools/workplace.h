// A folder with a small base model, data and a job, for tests of the program as a whole.
#ifndef QLORA_TESTS_TOOLS_WORKPLACE_H_
#define QLORA_TESTS_TOOLS_WORKPLACE_H_

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/io/temp_folder.h"
#include "tests/support/command_line.h"

namespace qlora::tests {

class Workplace : public testing::Test {
 protected:
  // Makes the base with the program itself, mode FULL from random weights: once for all tests.
  static void SetUpTestSuite();

  Workplace();

  std::string Path(const std::string& name) const { return folder_.File(name); }
  void Write(const std::string& name, const std::string& contents) const;
  std::string Read(const std::string& name) const;
  // The folder "base": config.json, model.safetensors, tokenizer.json, tokenizer_config.json.
  void Edit(const std::string& name, const std::string& from, const std::string& to) const;

  // Runs `command` on job.textproto, which is `job` behind model, output_dir and train_file.
  CommandResult Run(const std::string& command, const std::vector<std::string>& more = {},
                    const CommandOptions& options = {}) const;
  // job.textproto, as Run writes it.
  void WriteJob() const;
  std::map<std::string, std::string> Output() const { return TreeOf(Path("out")); }

  // Runs `train`, twice, and expects it to be refused with this code and every one of the words,
  // all files of the workplace as they were:
  //  - with what is there in "out": an output folder that is not there yet stays empty;
  //  - with another run's results in "out" (unless there are some), in 2 GiB of address space,
  //  where
  //    a size believed from a file would fail.
  void ExpectRefused(int code, const std::vector<std::string>& words,
                     const std::vector<std::string>& more = {}) const;
  // The same for any command, once, in `address_space`.
  void ExpectCommandRefused(const std::string& command, int code,
                            const std::vector<std::string>& words,
                            const std::vector<std::string>& more = {},
                            int64_t address_space = int64_t{2} << 30) const;

  std::string job_ =
      "mode: QLORA\n"
      "training { max_steps: 3 gradient_accumulation_steps: 2 logging_steps: 1 save_steps: 1\n"
      "  learning_rate: 1e-2 save_total_limit: 9 }\n"
      "lora { r: 4 }\n"
      "num_threads: 1\n";
  std::string data_ = "format: PROMPT_COMPLETION";
  TempFolder folder_;
};

}  // namespace qlora::tests

#endif  // QLORA_TESTS_TOOLS_WORKPLACE_H_
