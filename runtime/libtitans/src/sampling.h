// From logits to a token: greedy, or drawn from a distribution that is cut down in a fixed order: repetition penalty,
// temperature, top-k, top-p, min-p, draw. With a seed, the draws are those of NumPy's default generator.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace titans {

// PCG64 (XSL-RR 128/64), seeded through NumPy's SeedSequence: `numpy.random.default_rng(seed).random()`.
class Random {
 public:
  explicit Random(std::uint64_t seed);
  double next();  // in [0, 1)

 private:
  void step();
  unsigned __int128 state_ = 0, increment_ = 0;
};

struct SamplingOptions {
  double temperature = 1, top_p = 1, min_p = 0, repetition_penalty = 1;
  std::int64_t top_k = 0;  // 0: all
  std::int64_t seed = -1;  // -1: other draws every time
};

class Sampler {
 public:
  Sampler(const SamplingOptions& options, std::size_t vocabulary);
  void observe(std::span<const std::int64_t> tokens);
  std::int64_t choose(std::span<const float> logits);  // allocates nothing

 private:
  std::size_t draw();

  SamplingOptions options_;
  Random random_;
  std::vector<std::uint8_t> seen_;
  std::vector<double> scores_, probabilities_;
  std::vector<std::uint32_t> order_;
};

}  // namespace titans
