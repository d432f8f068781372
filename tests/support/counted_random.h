// Counted randomness for tests: number i of a stream is a function of (seed, i) alone, so the seed
// that a failure prints is all that is needed to see the failure again. Independent of
// kernels/philox.h, which is itself under test.

#ifndef QLORA_TESTS_SUPPORT_COUNTED_RANDOM_H_
#define QLORA_TESTS_SUPPORT_COUNTED_RANDOM_H_

#include <cmath>
#include <cstdint>
#include <initializer_list>

namespace qlora::kernels::optest {

class CountedRandom {
 public:
  explicit CountedRandom(uint64_t seed) : seed_(seed) {}

  uint64_t seed() const { return seed_; }

  // SplitMix64's finaliser over an odd stride (Steele, Lea & Flood, "Fast splittable pseudorandom
  // number generators").
  uint64_t Bits() {
    uint64_t z = seed_ * 0xD1342543DE82EF95u + ++counter_ * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  // In [0, 1).
  double Uniform() { return double(Bits() >> 11) * 0x1p-53; }
  // In [0, n).
  int64_t Below(int64_t n) { return int64_t(Uniform() * double(n)); }
  bool Chance(double probability) { return Uniform() < probability; }
  // Standard normal, by Box and Muller's transform.
  double Normal() {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - Uniform()));
    return radius * std::cos(6.283185307179586 * Uniform());
  }
  template <class T>
  T Pick(std::initializer_list<T> values) {
    return values.begin()[Below(int64_t(values.size()))];
  }

 private:
  uint64_t seed_;
  uint64_t counter_ = 0;
};

}  // namespace qlora::kernels::optest

#endif  // QLORA_TESTS_SUPPORT_COUNTED_RANDOM_H_
