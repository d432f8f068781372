#include "engine/drift/logit_score.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"

namespace qlora::engine {
namespace {

std::vector<float> Row(double phase, double spread) {
  std::vector<float> row(37);
  for (size_t v = 0; v < row.size(); ++v)
    row[v] = float(spread * std::sin(phase + 1.7 * double(v)));
  return row;
}

std::vector<double> Probabilities(const std::vector<float>& logits, double softcap) {
  std::vector<double> p;
  double sum = 0;
  for (const double z : logits) {
    p.push_back(std::exp(softcap > 0 ? softcap * std::tanh(z / softcap) : z));
    sum += p.back();
  }
  for (double& x : p) x /= sum;
  return p;
}

TEST(LogitScore, IsTheNaiveOne) {
  for (const float softcap : {0.0f, 3.0f}) {
    const std::vector<float> base = Row(0.3, 5), other = Row(0.8, 4);
    const std::vector<double> p = Probabilities(base, softcap), q = Probabilities(other, softcap);
    double kl = 0;
    for (size_t v = 0; v < p.size(); ++v) kl += p[v] * std::log(p[v] / q[v]);
    std::vector<float> a = base, b = other;
    const BaselineRow row = PrepareBaseline(absl::MakeSpan(a), softcap);
    const RowScore own = ScoreBaseline(a, row, 11);
    const RowScore score = ScoreRow(a, row, absl::MakeSpan(b), softcap, 11);
    const double bound = softcap > 0 ? 1e-5 : 1e-12;  // the softcap is computed in fp32
    EXPECT_NEAR(own.loss, -std::log(p[11]), bound);
    EXPECT_NEAR(score.loss, -std::log(q[11]), bound);
    EXPECT_NEAR(score.kl, kl, bound);
    EXPECT_GT(score.kl, 0);
    EXPECT_EQ(own.kl, 0);
  }
}

TEST(LogitScore, OfEqualLogitsIsExactlyZero) {
  std::vector<float> a = Row(0.3, 30), b = a;
  const BaselineRow row = PrepareBaseline(absl::MakeSpan(a), 0);
  const RowScore score = ScoreRow(a, row, absl::MakeSpan(b), 0, 5);
  EXPECT_EQ(score.kl, 0);
  EXPECT_EQ(score.loss, ScoreBaseline(a, row, 5).loss);
  EXPECT_TRUE(score.agrees);
}

TEST(LogitScore, TheLikeliestOfEqualsIsTheFirst) {
  std::vector<float> a = {1, 4, 4, 0}, b = {1, 3, 4, 4};
  const BaselineRow row = PrepareBaseline(absl::MakeSpan(a), 0);
  EXPECT_EQ(row.likeliest, 1);
  EXPECT_TRUE(ScoreBaseline(a, row, 1).correct);
  EXPECT_FALSE(ScoreBaseline(a, row, 2).correct);
  const RowScore score = ScoreRow(a, row, absl::MakeSpan(b), 0, 2);
  EXPECT_TRUE(score.correct);
  EXPECT_FALSE(score.agrees);
}

TEST(LogitScore, IsNeverNegative) {
  for (int i = 0; i < 200; ++i) {
    std::vector<float> a = Row(0.01 * i, 8), b = a;
    for (float& z : b) z += 3.0f;  // the same prediction, other roundings
    const BaselineRow row = PrepareBaseline(absl::MakeSpan(a), 0);
    EXPECT_GE(ScoreRow(a, row, absl::MakeSpan(b), 0, 1).kl, 0);
  }
}

}  // namespace
}  // namespace qlora::engine
