// Errors of weights and of predictions against those that bitsandbytes, torch and numpy give:
// tests/golden/drift/make_golden.py says how they were made.

#include <cfloat>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/drift/compare.h"
#include "engine/drift/logit_score.h"
#include "engine/drift/stream_error.h"
#include "engine/drift/weight_error.h"
#include "engine/model/element_convert.h"
#include "gtest/gtest.h"
#include "quant/reference_quantizer.h"
#include "tests/engine/model/golden_files.h"
#include "tests/support/paths.h"

namespace qlora::engine {
namespace {

using Json = nlohmann::json;

std::string GoldenPath(const std::string& name) {
  return tests::TestsDir() + "/golden/drift/" + name;
}

Json ReadGolden(const std::string& name) {
  std::ifstream file(GoldenPath(name));
  EXPECT_TRUE(file.good()) << name;
  return Json::parse(file);
}

SafetensorsFile OpenGolden(const std::string& name) {
  auto file = SafetensorsFile::Open(Env::Default(), GoldenPath(name));
  EXPECT_TRUE(file.ok()) << file.status();
  return *std::move(file);
}

// A weight, and what the libraries quantized it to.
struct Case {
  Json expected;
  quant::QuantSpec spec;
  kernels::DType dtype;
  std::vector<uint8_t> stored;  // as bytes
  std::vector<float> w;
  std::vector<uint8_t> codes, absmax_u8;
  std::vector<float> absmax_f32, nested_absmax, offset;

  int64_t n() const { return int64_t(w.size()); }
  quant::ConstQuantizedView View() const {
    return {.spec = spec,
            .codes = codes.data(),
            .absmax_f32 = absmax_f32.data(),
            .absmax_u8 = absmax_u8.data(),
            .nested_absmax = nested_absmax.data(),
            .nested_offset = offset.data()};
  }
  WeightError Measure(const quant::ConstQuantizedView& q, double factor) const {
    return MeasureWeightError(dtype, stored.data(), n(), q, {.outlier_factor = factor});
  }
  // Of the signal or the noise, n terms that are not negative: relative error of two such sums.
  double Rounding() const { return 2 * double(n()) * DBL_EPSILON; }
};

std::vector<Case> ReadCases() {
  const SafetensorsFile file = OpenGolden("weights.safetensors");
  std::vector<Case> cases;
  for (const Json& expected : ReadGolden("weights.json")) {
    Case& c = cases.emplace_back();
    c.expected = expected;
    for (const quant::QuantType type : {quant::QuantType::kNf4, quant::QuantType::kFp4E2M1,
                                        quant::QuantType::kFp4E3M0, quant::QuantType::kInt4}) {
      if (quant::QuantTypeName(type) == expected["type"].get<std::string>()) c.spec.type = type;
    }
    c.spec.block_size = expected["block_size"];
    c.spec.double_quant = expected["double_quant"];
    const TensorInfo* weight = file.Find(expected["weight"].get<std::string>());
    c.dtype = *FloatType(weight->dtype);
    c.stored.assign(file.data(*weight), file.data(*weight) + weight->bytes);
    c.w.resize(weight->elements());
    ConvertElements(c.dtype, c.stored.data(), c.n(), kernels::DType::kF32, c.w.data());
    const std::string name = expected["name"];
    c.codes = TensorValues<uint8_t>(file, name + ".codes");
    if (c.spec.double_quant) {
      c.absmax_u8 = TensorValues<uint8_t>(file, name + ".absmax");
      c.nested_absmax = TensorValues<float>(file, name + ".nested_absmax");
      c.offset = TensorValues<float>(file, name + ".offset");
    } else {
      c.absmax_f32 = TensorValues<float>(file, name + ".absmax");
    }
  }
  return cases;
}

double LargestOf(const Case& c, int64_t block) {
  double largest = 0;
  const int64_t first = block * c.spec.block_size;
  for (int64_t i = first; i < std::min(first + c.spec.block_size, c.n()); ++i) {
    largest = std::max(largest, double(std::fabs(c.w[i])));
  }
  return largest;
}

TEST(DriftGolden, WeightErrorsAreTheLibraries) {
  const std::vector<Case> cases = ReadCases();
  ASSERT_EQ(cases.size(), 18u);
  int64_t outliers = 0;
  for (const Case& c : cases) {
    SCOPED_TRACE(c.expected["name"].get<std::string>());
    for (const auto& [factor, count] : c.expected["outlier_blocks"].items()) {
      const WeightError found = c.Measure(c.View(), std::stod(factor));
      EXPECT_EQ(found.outlier_blocks, count.get<int64_t>()) << factor;
      outliers += found.outlier_blocks;
    }
    const WeightError found = c.Measure(c.View(), 3);
    EXPECT_EQ(found.blocks, c.expected["blocks"].get<int64_t>());
    EXPECT_EQ(found.max_absolute, c.expected["max_absolute"].get<double>());
    const double relative = c.expected["relative_error"], mean = c.expected["mean_absolute"];
    EXPECT_NEAR(found.RelativeError(), relative, relative * c.Rounding());
    EXPECT_NEAR(found.MeanAbsolute(), mean, mean * c.Rounding());
    // d(10 · log10 x) = 10 / ln 10 · dx / x, once for the signal and once for the noise.
    EXPECT_NEAR(found.SnrDb(), c.expected["snr_db"].get<double>(),
                20 / std::log(10) * c.Rounding());
  }
  EXPECT_GT(outliers, 10);
}

// Our own quantizer loses what theirs loses. Scales in 8 bits differ by a code at times, and codes
// where a weight lies at a threshold t between two values, which is rounded otherwise (1e-6 of
// absmax: tests/quant/golden_test.cc). With w = t · absmax and a scale s the distances of w to the
// two differ by 2 |w − t · s|, t · 2 |absmax − s|.
TEST(DriftGolden, OurQuantizerLosesWhatTheirsLoses) {
  for (const Case& c : ReadCases()) {
    // With double quantization a block of zeros reads as small numbers (quant/NF4.md), in
    // bitsandbytes' CPU build as zeros.
    if (c.spec.double_quant && c.expected["weight"] == "zero_blocks") continue;
    SCOPED_TRACE(c.expected["name"].get<std::string>());
    std::vector<uint8_t> codes(c.spec.CodeBytes(c.n())), absmax_u8(c.spec.BlockCount(c.n()));
    std::vector<float> absmax(absmax_u8.size()), nested(c.spec.GroupCount(c.n()));
    float offset = 0;
    const quant::QuantizedView view{.codes = codes.data(),
                                    .absmax_f32 = absmax.data(),
                                    .absmax_u8 = absmax_u8.data(),
                                    .nested_absmax = nested.data(),
                                    .nested_offset = &offset};
    ASSERT_TRUE(quant::QuantizeReference(c.w.data(), c.n(), c.spec, view).ok());
    const quant::ConstQuantizedView ours = quant::AsConst(c.spec, view);
    const WeightError found = c.Measure(ours, 3), theirs = c.Measure(c.View(), 3);
    const std::array<float, 16>& values = quant::CodeValues(c.spec.type);
    double most = 0, square = 0;  // of the elements' differences: the largest, the sum of squares
    for (int64_t i = 0; i < c.n(); ++i) {
      const int64_t block = i / c.spec.block_size;
      const float scale = quant::BlockScale(c.View(), block);
      double d = std::fabs(scale - quant::BlockScale(ours, block));
      // By value: two codes stand for 0, and in INT4 two for -1.
      if (values[quant::CodeAt(codes.data(), i)] != values[quant::CodeAt(c.codes.data(), i)] &&
          scale != 0) {
        const double largest = LargestOf(c, block);
        d += 2 * (1e-6 * largest + std::fabs(c.w[i]) / largest * std::fabs(largest - scale));
      }
      most = std::max(most, d), square += d * d;
    }
    EXPECT_NEAR(found.max_absolute, theirs.max_absolute, most);
    // The triangle inequality of the Euclidean norm.
    EXPECT_NEAR(std::sqrt(found.noise), std::sqrt(theirs.noise),
                std::sqrt(square) + c.Rounding() * std::sqrt(theirs.noise));
    EXPECT_LT(std::sqrt(square), 0.02 * std::sqrt(theirs.noise)) << "or this says nothing";
  }
}

TEST(DriftGolden, PredictionsAreTorchs) {
  const SafetensorsFile file = OpenGolden("logits.safetensors");
  const Json expected = ReadGolden("logits.json");
  std::vector<float> baseline = TensorValues<float>(file, "baseline"),
                     other = TensorValues<float>(file, "other");
  const auto targets = TensorValues<int32_t>(file, "targets");
  const size_t vocab = baseline.size() / targets.size();
  ModelScore score;
  for (size_t r = 0; r < targets.size(); ++r) {
    const absl::Span<float> p(baseline.data() + r * vocab, vocab),
        q(other.data() + r * vocab, vocab);
    double largest = std::log(double(vocab));
    for (const auto row : {p, q}) {
      for (const float z : row) largest = std::max(largest, double(std::fabs(z)));
    }
    // A log probability: a sum of V exponentials and two differences of numbers up to `largest`; KL
    // is a sum of V of them, by weights that sum to 1.
    const double bound = double(vocab + 8) * DBL_EPSILON * 2 * largest;
    const BaselineRow row = PrepareBaseline(p, 0);
    const RowScore own = ScoreBaseline(p, row, targets[r]);
    const RowScore found = ScoreRow(p, row, q, 0, targets[r]);
    EXPECT_NEAR(own.loss, expected["baseline_loss"][r].get<double>(), bound) << r;
    EXPECT_NEAR(found.loss, expected["loss"][r].get<double>(), bound) << r;
    EXPECT_NEAR(found.kl, expected["kl"][r].get<double>(), bound) << r;
    EXPECT_EQ(found.agrees, expected["agrees"][r].get<bool>()) << r;
    EXPECT_EQ(found.correct, expected["correct"][r].get<bool>()) << r;
    score.loss += found.loss, ++score.tokens;
  }
  EXPECT_NEAR(score.Perplexity() / expected["perplexity"].get<double>(), 1, 1e-11);
}

TEST(DriftGolden, StreamsAreTorchs) {
  const SafetensorsFile file = OpenGolden("logits.safetensors");
  const Json expected = ReadGolden("logits.json");
  const std::vector<float> a = TensorValues<float>(file, "stream"),
                           b = TensorValues<float>(file, "other_stream");
  const std::vector<int64_t>& shape = file.Find("stream")->shape;
  const auto view = [&](const std::vector<float>& values) {
    return kernels::ConstTensor{values.data(), kernels::DType::kF32, shape[0], shape[1], shape[1]};
  };
  const StreamError found = CompareStreams(view(a), view(b), 1);
  const double rounding = double(shape[0] + 4 * shape[1]) * DBL_EPSILON;
  EXPECT_NEAR(found.Cosine(), expected["cosine"].get<double>(), rounding);
  EXPECT_NEAR(found.RelativeError(), expected["relative_error"].get<double>(), rounding);
}

}  // namespace
}  // namespace qlora::engine
