#include "engine/io/model_files.h"

#include <algorithm>
#include <map>
#include <memory>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/support/faulty_env.h"

namespace qlora::engine {
namespace {

constexpr size_t kPieceBytes = 1 << 20;

// Keeps what is written, and how large the largest piece was.
struct Written {
  std::map<std::string, std::string> files;
  size_t largest = 0;

  FileMaker Maker() {
    return [this](const std::string& name) -> absl::StatusOr<std::unique_ptr<WritableFile>> {
      return std::make_unique<File>(this, &files[name]);
    };
  }

  class File : public WritableFile {
   public:
    File(Written* written, std::string* contents) : written_(*written), contents_(*contents) {}
    absl::Status Append(absl::string_view bytes) override {
      written_.largest = std::max(written_.largest, bytes.size());
      absl::StrAppend(&contents_, bytes);
      return absl::OkStatus();
    }
    absl::Status Sync() override { return absl::OkStatus(); }
    absl::Status Close() override { return absl::OkStatus(); }

   private:
    Written& written_;
    std::string& contents_;
  };
};

TEST(ModelFilesTest, TokenizersAreCopiedInPieces) {
  tests::FaultyEnv env;
  ASSERT_TRUE(env.CreateFolder("model").ok());
  std::map<std::string, std::string> expected;
  // Around the ends of pieces.
  const std::pair<const char*, size_t> sizes[] = {{"tokenizer.json", 2 * kPieceBytes + 17},
                                                  {"tokenizer.model", kPieceBytes},
                                                  {"merges.txt", kPieceBytes - 1},
                                                  {"added_tokens.json", 0}};
  for (const auto& [name, size] : sizes) {
    std::string& contents = expected[name];
    for (size_t i = 0; i < size; ++i) contents.push_back(char(i * 2654435761u >> 13));
    auto file = env.NewWritableFile(JoinPath("model", name));
    ASSERT_TRUE(file.ok() && (*file)->Append(absl::string_view(contents)).ok() &&
                (*file)->Close().ok());
  }
  Written written;
  ASSERT_TRUE(CopyTokenizerFiles(&env, "model", written.Maker()).ok());
  EXPECT_TRUE(written.files == expected);
  EXPECT_LE(written.largest, kPieceBytes);
}

}  // namespace
}  // namespace qlora::engine
