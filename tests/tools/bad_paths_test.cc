// Paths that lead to what is no file of the expected kind. Reading a FIFO or a device may never
// end.

#include <sys/stat.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "tests/tools/workplace.h"

namespace qlora::tests {
namespace {

namespace fs = std::filesystem;

class BadPaths : public Workplace, public testing::WithParamInterface<const char*> {};

// Every file that a run reads, in turn.
TEST_P(BadPaths, AreRefused) {
  const std::string name = GetParam();
  const std::string path = Path(name);
  const int code = name == "job.textproto" ? 64 : 65;
  Write("job.textproto", "");
  const auto expect = [&](int expected, const char* word) {
    if (name == "job.textproto") {
      const CommandResult result = RunEngine({"train", path});
      EXPECT_EQ(result.exit_code, expected) << result.err;
      EXPECT_THAT(result.err, testing::HasSubstr(word));
    } else {
      ExpectRefused(expected, {fs::path(name).filename().string(), word});
    }
  };
  fs::remove(path);
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  expect(code, "is a FIFO, but a regular file is needed");
  fs::remove(path);
  fs::create_symlink("/dev/zero", path);
  expect(code, "is a device, but a regular file is needed");
  fs::remove(path);
  fs::create_directory(path);
  expect(code, "is a folder, but a regular file is needed");
  fs::remove(path);
  fs::create_symlink(path, path);
  expect(name == "job.textproto" ? 64 : 74, "Too many levels of symbolic links");
}

INSTANTIATE_TEST_SUITE_P(Files, BadPaths,
                         testing::Values("job.textproto", "base/config.json",
                                         "base/model.safetensors", "base/tokenizer.json",
                                         "base/tokenizer_config.json", "data.jsonl"),
                         [](const auto& info) {
                           std::string name = fs::path(info.param).filename().string();
                           for (char& c : name) c = std::isalnum(c) ? c : '_';
                           return name;
                         });

class GoodPaths : public Workplace {};

// Hugging Face's cache is made of links.
TEST_F(GoodPaths, LinksInsideAModelFolder) {
  fs::create_directory(Path("blobs"));
  for (const fs::directory_entry& entry : fs::directory_iterator(Path("base"))) {
    const fs::path blob = fs::path(Path("blobs")) / entry.path().filename();
    fs::rename(entry.path(), blob);
    fs::create_symlink(blob, entry.path());
  }
  const CommandResult result = Run("train");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_TRUE(fs::is_regular_file(fs::symlink_status(Path("out/tokenizer.json"))));
}

TEST_F(GoodPaths, ModelOfTheHubCache) {
  const std::string hub = Path("hub"), snapshot = hub + "/models--o--m/snapshots/abc";
  fs::create_directories(snapshot);
  fs::create_directories(hub + "/models--o--m/refs");
  Write("hub/models--o--m/refs/main", "abc");
  fs::copy(Path("base"), snapshot, fs::copy_options::recursive);
  ::setenv("HF_HUB_CACHE", hub.c_str(), 1);
  const CommandResult result = Run("train", {"--set", "model=o/m"});
  ::unsetenv("HF_HUB_CACHE");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(Read("out/adapter_config.json"),
              testing::HasSubstr("\"base_model_name_or_path\": \"o/m\""));
}

}  // namespace
}  // namespace qlora::tests
