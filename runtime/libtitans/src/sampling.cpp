#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

namespace titans {
namespace {

constexpr unsigned __int128 wide(std::uint64_t high, std::uint64_t low) {
  return static_cast<unsigned __int128>(high) << 64 | low;
}

constexpr unsigned __int128 kMultiplier = wide(2549297995355413924ULL, 4865540595714422341ULL);
constexpr int kPool = 4;

// SeedSequence's hash of 32-bit words.
class Hash {
 public:
  Hash(std::uint32_t first, std::uint32_t multiplier) : constant_(first), multiplier_(multiplier) {}
  std::uint32_t operator()(std::uint32_t value) {
    value ^= constant_;
    constant_ *= multiplier_;
    value *= constant_;
    return value ^ value >> 16;
  }

 private:
  std::uint32_t constant_, multiplier_;
};

std::uint32_t mixed(std::uint32_t x, std::uint32_t y) {
  const std::uint32_t result = 0xca01f9ddu * x - 0x4973f715u * y;
  return result ^ result >> 16;
}

std::uint64_t some_seed() {
  std::random_device device;
  return static_cast<std::uint64_t>(device()) << 32 | device();
}

}  // namespace

Random::Random(std::uint64_t seed) {
  const std::uint32_t entropy[2] = {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)};
  std::uint32_t pool[kPool];
  Hash in(0x43b0d7e5u, 0x931e8875u);
  for (int i = 0; i < kPool; ++i) pool[i] = in(i < 2 ? entropy[i] : 0);  // a word that is left out counts as 0
  for (int from = 0; from < kPool; ++from)
    for (int to = 0; to < kPool; ++to)
      if (from != to) pool[to] = mixed(pool[to], in(pool[from]));
  Hash out(0x8b51f9ddu, 0x58f38dedu);
  std::uint64_t words[4];
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t low = out(pool[(2 * i) % kPool]), high = out(pool[(2 * i + 1) % kPool]);
    words[i] = static_cast<std::uint64_t>(high) << 32 | low;
  }
  increment_ = wide(words[2], words[3]) << 1 | 1;
  step();
  state_ += wide(words[0], words[1]);
  step();
}

void Random::step() { state_ = state_ * kMultiplier + increment_; }

double Random::next() {
  step();
  const auto value = static_cast<std::uint64_t>(state_ >> 64) ^ static_cast<std::uint64_t>(state_);
  const unsigned turn = static_cast<unsigned>(state_ >> 122);
  const std::uint64_t turned = value >> turn | value << ((64 - turn) & 63);
  return static_cast<double>(turned >> 11) * 0x1p-53;
}

Sampler::Sampler(const SamplingOptions& options, std::size_t vocabulary)
    : options_(options),
      random_(options.seed < 0 ? some_seed() : static_cast<std::uint64_t>(options.seed)),
      seen_(vocabulary),
      scores_(vocabulary),
      probabilities_(options.temperature > 0 ? vocabulary : 0),
      order_(options.temperature > 0 ? vocabulary : 0) {}

void Sampler::observe(std::span<const std::int64_t> tokens) {
  for (const std::int64_t token : tokens) seen_[static_cast<std::size_t>(token)] = 1;
}

std::int64_t Sampler::choose(std::span<const float> logits) {
  const double penalty = options_.repetition_penalty;
  for (std::size_t i = 0; i < scores_.size(); ++i) {
    double score = logits[i];
    if (penalty != 1 && seen_[i]) score = score > 0 ? score / penalty : score * penalty;
    scores_[i] = score;
  }
  const auto token = options_.temperature == 0
                         ? static_cast<std::size_t>(std::max_element(scores_.begin(), scores_.end()) - scores_.begin())
                         : draw();
  seen_[token] = 1;
  return static_cast<std::int64_t>(token);
}

std::size_t Sampler::draw() {
  std::size_t keep = order_.size();
  if (options_.top_k > 0) keep = std::min(keep, static_cast<std::size_t>(options_.top_k));
  std::iota(order_.begin(), order_.end(), 0u);
  const auto likelier = [this](std::uint32_t a, std::uint32_t b) {
    return scores_[a] != scores_[b] ? scores_[a] > scores_[b] : a < b;
  };
  const auto middle = order_.begin() + static_cast<std::ptrdiff_t>(keep);
  if (middle != order_.end()) std::nth_element(order_.begin(), middle - 1, order_.end(), likelier);
  std::sort(order_.begin(), middle, likelier);
  const auto normalise = [this](std::size_t count) {
    double sum = 0;
    for (std::size_t i = 0; i < count; ++i) sum += probabilities_[i];
    for (std::size_t i = 0; i < count; ++i) probabilities_[i] /= sum;
  };
  for (std::size_t i = 0; i < keep; ++i)
    probabilities_[i] = std::exp((scores_[order_[i]] - scores_[order_[0]]) / options_.temperature);
  normalise(keep);
  std::size_t left = keep;
  if (options_.top_p < 1) {
    double reached = 0;
    for (std::size_t i = 0; i < keep; ++i) {
      reached += probabilities_[i];
      if (reached < options_.top_p) continue;
      left = i + 1;
      break;
    }
  }
  if (options_.min_p > 0) {
    std::size_t likely = 0;
    for (std::size_t i = 0; i < keep; ++i) likely += probabilities_[i] >= options_.min_p * probabilities_[0];
    left = std::min(left, likely);
  }
  normalise(left);
  double edge = 0;
  for (std::size_t i = 0; i < left; ++i) edge += probabilities_[i];
  const double place = random_.next() * edge;
  edge = 0;
  for (std::size_t i = 0; i < left; ++i) {
    edge += probabilities_[i];
    if (place < edge) return order_[i];
  }
  return order_[left - 1];
}

}  // namespace titans
