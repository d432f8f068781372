// Access to the files of tests/golden/models.
#ifndef QLORA_TESTS_ENGINE_MODEL_GOLDEN_FILES_H_
#define QLORA_TESTS_ENGINE_MODEL_GOLDEN_FILES_H_

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "engine/io/safetensors.h"
#include "gtest/gtest.h"
#include "tests/support/paths.h"

namespace qlora::engine {

// Below the folder that the tests were built from, or where they were carried to: the environment's
// QLORA_TESTS_DIR.
inline std::string GoldenModelPath(const std::string& name) {
  const char* carried = std::getenv("QLORA_TESTS_DIR");
  return std::string(carried != nullptr ? carried : tests::TestsDir()) + "/golden/models/" + name;
}

inline std::string GoldenModelText(const std::string& name) {
  std::ifstream file(GoldenModelPath(name));
  EXPECT_TRUE(file.good()) << name;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// The elements of a tensor; the element type must have the tensor's size.
template <class T>
std::vector<T> TensorValues(const SafetensorsFile& file, const std::string& name) {
  const TensorInfo* info = file.Find(name);
  EXPECT_NE(info, nullptr) << name << " in " << file.path();
  if (info == nullptr) return {};
  EXPECT_EQ(info->bytes, info->elements() * int64_t{sizeof(T)}) << name;
  std::vector<T> values(info->bytes / sizeof(T));
  std::memcpy(values.data(), file.data(*info), values.size() * sizeof(T));
  return values;
}

}  // namespace qlora::engine

#endif  // QLORA_TESTS_ENGINE_MODEL_GOLDEN_FILES_H_
