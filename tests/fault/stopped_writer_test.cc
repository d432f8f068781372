// Commands that write a model, stopped or killed while they do: nothing unfinished stays, or not
// beyond the next one.
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/tools/workplace.h"

namespace qlora::tests {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::IsSupersetOf;

class StoppedWriter : public Workplace {
 protected:
  StoppedWriter() {
    job_ = "mode: QLORA training { max_steps: 2 } lora { r: 4 } num_threads: 1\n";
    // Scored long enough for a signal to hit.
    std::string records;
    for (int i = 0; i < 2'000; ++i) {
      absl::StrAppend(&records, "{\"prompt\": \"say ", i, ": \", \"completion\": \"", i, "\"}\n");
    }
    Write("many.jsonl", records);
  }

  std::vector<std::string> MergeWords(const std::string& file) const {
    return {"--set", "merge.output=" + Path("models/merged"),
            "--set", "merge.file=" + Path(file),
            "--set", "merge.max_samples=0"};
  }
  // Names below `folder` that tell of something unfinished.
  std::vector<std::string> Hidden(const std::string& folder) const {
    std::vector<std::string> names;
    if (!fs::exists(Path(folder))) return names;
    for (const auto& entry : fs::recursive_directory_iterator(Path(folder))) {
      const std::string name = entry.path().filename();
      if (name[0] == '.') names.push_back(name.substr(0, name.find('-', 5)));
    }
    return names;
  }
  // Runs `command` and sends it `signal` as soon as `folder` holds a name that begins with `cue`.
  CommandResult Hit(const std::string& command, std::vector<std::string> more, int signal,
                    const std::string& folder, const std::string& cue) const {
    WriteJob();
    std::vector<std::string> words = {command, Path("job.textproto")};
    words.insert(words.end(), more.begin(), more.end());
    std::jthread watcher;
    return RunEngine(words, {.on_start = [&](int pid) {
                       watcher = std::jthread([=, this](std::stop_token over) {
                         while (!over.stop_requested()) {
                           if (fs::exists(Path(folder))) {
                             for (const auto& entry : fs::directory_iterator(Path(folder))) {
                               if (entry.path().filename().string().starts_with(cue)) {
                                 ::kill(pid, signal);
                                 return;
                               }
                             }
                           }
                           std::this_thread::sleep_for(std::chrono::microseconds(200));
                         }
                       });
                     }});
  }
};

TEST_F(StoppedWriter, OfAMergedModelLeavesNothing) {
  ASSERT_EQ(Run("train").exit_code, 0);
  const auto before = TreeOf(folder_.path());
  for (const auto& [signal, code] : {std::pair(SIGINT, 130), std::pair(SIGTERM, 143)}) {
    const CommandResult result =
        Hit("merge", MergeWords("many.jsonl"), signal, "models", ".tmp-merged-");
    EXPECT_EQ(result.exit_code, code) << result.err;
    EXPECT_THAT(result.err, HasSubstr("stopped; nothing was written to " + Path("models/merged")));
    EXPECT_TRUE(TreeOf(folder_.path()) == before);
  }
}

TEST_F(StoppedWriter, OfAMergedModelThatIsKilledIsClearedAwayByTheNext) {
  ASSERT_EQ(Run("train").exit_code, 0);
  ASSERT_EQ(Hit("merge", MergeWords("many.jsonl"), SIGKILL, "models", ".tmp-merged-").signal,
            SIGKILL);
  EXPECT_THAT(Hidden("models"), IsSupersetOf({".tmp-merged", ".merged.lock"}));
  // Of others, who may be at work, and what is nobody's of us.
  const std::string id = "-0123456789abcdef";
  for (const std::string name : {".tmp-merged-2", ".tmp-mergedx", ".tmp-replaced-merged-2"}) {
    fs::create_directories(Path("models/" + name + id));
  }
  Write("models/.tmp-merged-mine", "mine");
  // Moved aside by one that died before it put its own in place.
  fs::create_directory(Path("models/.tmp-replaced-merged" + id));
  Write("models/.tmp-replaced-merged" + id + "/thesis.txt", "thesis");
  EXPECT_EQ(Run("merge", MergeWords("data.jsonl")).exit_code, 64) << "what is back is kept";
  EXPECT_EQ(Read("models/merged/thesis.txt"), "thesis");
  fs::remove_all(Path("models/merged"));
  const CommandResult next = Run("merge", MergeWords("data.jsonl"));
  ASSERT_EQ(next.exit_code, 0) << next.err;
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(Path("models"))) {
    names.push_back(entry.path().filename());
  }
  EXPECT_THAT(names,
              testing::UnorderedElementsAre("merged", ".tmp-merged-2" + id, ".tmp-mergedx" + id,
                                            ".tmp-replaced-merged-2" + id, ".tmp-merged-mine"));
}

// Jobs with an output_dir each may name the same folder: one is not cleared away by the other.
TEST_F(StoppedWriter, OfAMergedModelThatGoesOnIsLeftAlone) {
  ASSERT_EQ(Run("train").exit_code, 0);
  fs::copy(Path("out"), Path("other"), fs::copy_options::recursive);
  CommandResult second;
  std::jthread another;
  const CommandResult first = RunEngine(
      [&] {
        std::vector<std::string> words = MergeWords("many.jsonl");
        words.insert(words.begin(), {"merge", Path("job.textproto")});
        return words;
      }(),
      {.on_start = [&](int) {
        another = std::jthread([&] {
          while (Hidden("models").size() < 2) {
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
          }
          std::vector<std::string> words = MergeWords("data.jsonl");
          words.insert(words.begin(),
                       {"merge", Path("job.textproto"), "--set", "output_dir=" + Path("other")});
          second = RunEngine(words);
        });
      }});
  another.join();
  EXPECT_EQ(first.exit_code, 0) << first.err;
  EXPECT_EQ(second.exit_code, 64) << second.err;
  EXPECT_THAT(second.err, HasSubstr("merge.output " + Path("models/merged") +
                                    " is in use by another run: process "));
  EXPECT_EQ(RunEngine({"verify", Path("models/merged")}).exit_code, 0);
  EXPECT_THAT(Hidden("models"), IsEmpty());
}

TEST_F(StoppedWriter, OfA4BitCheckpointLeavesNothing) {
  int hits = 0;
  for (int i = 0; i < 40 && hits < 2; ++i) {
    fs::remove_all(Path("out"));
    const int signal = hits == 0 ? SIGINT : SIGTERM;
    const CommandResult result = Hit("quantize", {}, signal, "out", ".run.lock");
    if (fs::exists(Path("out/quantized/config.json"))) continue;  // written before
    ++hits;
    EXPECT_EQ(result.exit_code, 128 + signal) << result.err;
    EXPECT_THAT(result.err, HasSubstr("stopped; the same command writes "));
    EXPECT_THAT(Hidden("out"), IsEmpty());
    EXPECT_FALSE(fs::exists(Path("out/quantized")));
  }
  EXPECT_EQ(hits, 2);
}

TEST_F(StoppedWriter, OfA4BitCheckpointThatIsKilledIsClearedAwayByTheNext) {
  fs::create_directories(Path("out/quantized"));
  Write("out/quantized/.tmp-quantization_error.json-0123456789abcdef", "half");
  fs::create_directories(Path("out/.tmp-quantized-0123456789abcdef"));
  Write("out/.tmp-quantized-0123456789abcdef/model.safetensors", "half");
  ASSERT_EQ(Run("quantize").exit_code, 0);
  EXPECT_THAT(Hidden("out"), IsEmpty());
  EXPECT_EQ(RunEngine({"verify", Path("out/quantized")}).exit_code, 0);
}

}  // namespace
}  // namespace qlora::tests
