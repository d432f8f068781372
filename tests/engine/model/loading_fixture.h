// Checkpoints that tests change before they are read, and runs that they are loaded into.
#ifndef QLORA_TESTS_ENGINE_MODEL_LOADING_FIXTURE_H_
#define QLORA_TESTS_ENGINE_MODEL_LOADING_FIXTURE_H_

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/io/safetensors_writer.h"
#include "engine/model/families.h"
#include "engine/model/load_weights.h"
#include "engine/model/prequantized.h"
#include "engine/step/execution.h"
#include "gtest/gtest.h"
#include "tests/engine/io/temp_folder.h"
#include "tests/engine/model/golden_files.h"
#include "tests/engine/model/reference_device.h"

namespace qlora::engine {

// The tensors and config of a golden model, to be changed and saved.
struct EditableModel {
  struct Entry {
    Dtype dtype;
    std::vector<int64_t> shape;
    std::string bytes;
  };
  std::map<std::string, Entry> tensors;
  std::string config;

  explicit EditableModel(const std::string& golden)
      : config(GoldenModelText(golden + "/config.json")) {
    const auto file =
        SafetensorsFile::Open(Env::Default(), GoldenModelPath(golden + "/model.safetensors"));
    EXPECT_TRUE(file.ok()) << file.status();
    for (const TensorInfo& info : file->tensors()) {
      tensors[info.name] = {
          info.dtype, info.shape,
          std::string(reinterpret_cast<const char*>(file->data(info)), info.bytes)};
    }
  }
  Entry& at(const std::string& name) { return tensors.at(name); }
  // A tensor of `elements` zeros.
  void AddZeros(const std::string& name, Dtype dtype, std::vector<int64_t> shape) {
    int64_t bytes = DtypeBits(dtype) / 8;
    for (const int64_t extent : shape) bytes *= extent;
    tensors[name] = {dtype, std::move(shape), std::string(bytes, '\0')};
  }
  void Replace(const std::string& name, const std::string& from, const std::string& to) {
    std::string& text = at(name).bytes;
    const size_t place = text.find(from);
    ASSERT_NE(place, std::string::npos) << from << " in " << text;
    text.replace(place, from.size(), to);
    at(name).shape = {int64_t(text.size())};
  }
  ShardedModel Save(const tests::TempFolder& folder) const {
    EXPECT_TRUE(folder.Write("config.json", config).ok());
    std::vector<TensorData> data;
    for (const auto& [name, entry] : tensors) {
      data.push_back({{name, entry.dtype, entry.shape},
                      {reinterpret_cast<const uint8_t*>(entry.bytes.data()), entry.bytes.size()}});
    }
    EXPECT_TRUE(WriteSafetensors(Env::Default(), folder.File("model.safetensors"), data).ok());
    auto model = ShardedModel::Open(Env::Default(), folder.path());
    EXPECT_TRUE(model.ok()) << model.status();
    return *std::move(model);
  }
};

inline ModelSpec SpecOf(const std::string& folder) {
  auto spec = ReadModelConfig(Env::Default(), folder);
  EXPECT_TRUE(spec.ok()) << spec.status();
  return *std::move(spec);
}

inline ShardedModel OpenGolden(const std::string& name) {
  auto model = ShardedModel::Open(Env::Default(), GoldenModelPath(name));
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}

// The storage of an evaluation without adapters, and memory behind it.
struct TestRun {
  std::unique_ptr<tests::ReferenceDevice> device;
  Plan plan;
  std::unique_ptr<Execution> execution;

  TestRun(const ShardedModel& model, const quant::QuantSpec& quant,
          std::unique_ptr<tests::ReferenceDevice> on = std::make_unique<tests::ReferenceDevice>())
      : device(std::move(on)) {
    StorageOptions options;
    options.quant = quant;
    options.training = false;
    options.rope_positions = 4;
    const ModelSpec spec = SpecOf(model.folder());
    plan.run.storage = AddStorage(spec, options, &plan.run.program);
    plan.placement.offset.assign(plan.run.program.buffers().size(), -1);
    plan.placement.bytes = LoadingBytes(&model, spec, options, *device, /*writes_cache=*/true);
    auto created = Execution::Create(plan, device.get());
    EXPECT_TRUE(created.ok()) << created.status();
    execution = *std::move(created);
  }

  absl::Status Load(const ShardedModel& model) { return LoadWeights(model, execution.get(), {}); }

  std::string Bytes(kernels::ConstTensor view) {
    std::string bytes(view.Extent(), '\0');
    if (view) {
      EXPECT_TRUE(execution->Read(view, bytes.data(), view.Extent()).ok());
    }
    return bytes;
  }
  // All weights, as they lie in memory.
  std::map<std::string, std::string> Snapshot() {
    std::map<std::string, std::string> all;
    for (const WeightSlot& slot : plan.run.storage.weights) {
      all[slot.row.name] = Bytes(slot.frozen) + Bytes(slot.quantized.codes) +
                           Bytes(slot.quantized.absmax) + Bytes(slot.quantized.nested_absmax) +
                           Bytes(slot.quantized.offset);
    }
    return all;
  }
};

}  // namespace qlora::engine

#endif  // QLORA_TESTS_ENGINE_MODEL_LOADING_FIXTURE_H_
