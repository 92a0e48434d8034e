#include "generator.h"

#include <algorithm>
#include <cmath>

#include "error.h"

namespace titans {
namespace {

constexpr std::int64_t kPiece = 1024;  // tokens of a prompt that are one call: what an interrupt loses at most
constexpr std::int64_t kNewTokens = 64;

SamplingOptions checked(const titans_sampling& sampling) {
  const auto refuse = [](const char* name, double value, const char* remedy) {
    input_error(text("sampling.", name, " is ", value), remedy);
  };
  const auto within = [](double value, double least, double most) { return value >= least && value <= most; };
  if (!within(sampling.temperature, 0, 1e308))
    refuse("temperature", sampling.temperature, "use 0 (greedy) or above, such as 0.8");
  if (!within(sampling.repetition_penalty, 1e-3, 1e308))
    refuse("repetition_penalty", sampling.repetition_penalty, "use 1 for none, or above, such as 1.1");
  if (!within(sampling.top_p, 1e-9, 1))
    refuse("top_p", sampling.top_p, "use a value above 0 and at most 1, such as 0.95");
  if (!within(sampling.min_p, 0, 1)) refuse("min_p", sampling.min_p, "use a value from 0 to 1, such as 0.05");
  if (sampling.top_k < 0) refuse("top_k", static_cast<double>(sampling.top_k), "use 0 for all, or above");
  if (sampling.seed < -1) refuse("seed", static_cast<double>(sampling.seed), "use -1 for any, or above");
  if (sampling.max_new_tokens < 0)
    refuse("max_new_tokens", static_cast<double>(sampling.max_new_tokens), "use 0 or above, such as 64");
  if (sampling.stop_count && !sampling.stop_ids) input_error("sampling.stop_ids is null", "point it at stop_count ids");
  return {sampling.temperature,        sampling.top_p, sampling.min_p,
          sampling.repetition_penalty, sampling.top_k, sampling.seed};
}

const Manifest& tokens_only(const Session& session) {
  const Manifest& manifest = session.model().manifest();
  if (manifest.vectors) input_error("a model of vectors has no tokens to generate", "feed its predictions back to it");
  return manifest;
}

}  // namespace

void check_ids(const Manifest& manifest, std::span<const std::int64_t> ids) {
  for (std::size_t i = 0; i < ids.size(); ++i)
    if (ids[i] < 0 || ids[i] >= manifest.outputs)
      input_error(text("token ", ids[i], " at index ", i, " is outside the vocabulary"),
                  text("pass ids from 0 to ", manifest.outputs - 1));
}

titans_sampling sampling_defaults(const Manifest& manifest) {
  titans_sampling sampling{};
  sampling.size = sizeof sampling;
  sampling.temperature = manifest.temperature.value_or(1.0);
  sampling.top_p = manifest.top_p.value_or(1.0);
  sampling.min_p = manifest.min_p.value_or(0.0);
  sampling.repetition_penalty = manifest.repetition_penalty.value_or(1.0);
  sampling.top_k = manifest.top_k.value_or(0);
  sampling.seed = -1;
  sampling.max_new_tokens = manifest.max_new_tokens.value_or(kNewTokens);
  return sampling;
}

Generator::Generator(Session& session, std::span<const std::int64_t> prompt, bool has_prompt,
                     const titans_sampling& sampling)
    : session_(session),
      prompt_(prompt.begin(), prompt.end()),
      left_(sampling.max_new_tokens),
      sampler_(checked(sampling), static_cast<std::size_t>(tokens_only(session).outputs)) {
  const Manifest& manifest = session.model().manifest();
  session.check_sound();
  if (has_prompt && prompt.empty()) input_error("there are no tokens to feed", "pass at least one");
  if (!has_prompt && !session.standing().has_last)
    input_error("there is nothing to go on from", "pass a prompt, or feed the session first");
  check_ids(manifest, prompt);
  const std::span<const std::int64_t> stops(sampling.stop_ids, sampling.stop_count);
  for (const std::int64_t id : stops)
    if (id < 0 || id >= manifest.outputs)
      input_error(text("stop id ", id, " is outside the vocabulary"), text("use ids from 0 to ", manifest.outputs - 1));
  stop_.assign(stops.begin(), stops.end());
  if (!sampling.ignore_eos) {
    eos_ = manifest.eos;
    stop_.insert(stop_.end(), manifest.stop.begin(), manifest.stop.end());
  }
  sampler_.observe(prompt_);
}

titans_ended Generator::why(std::int64_t token) const {
  if (std::find(eos_.begin(), eos_.end(), token) != eos_.end()) return TITANS_EOS;
  return std::find(stop_.begin(), stop_.end(), token) != stop_.end() ? TITANS_STOP : TITANS_GOING_ON;
}

// In pieces that end where a chunk ends: the calls are those of the prompt as one piece.
void Generator::read_prompt() {
  const std::int64_t chunk = session_.model().manifest().chunk;
  while (read_ < prompt_.size()) {
    const std::int64_t piece = std::max<std::int64_t>(kPiece / chunk, 1) * chunk - session_.position() % chunk;
    const std::int64_t count = std::min(piece, static_cast<std::int64_t>(prompt_.size() - read_));
    session_.feed(prompt_.data() + read_, nullptr, count, {});
    read_ += static_cast<std::size_t>(count);
  }
}

std::int64_t Generator::next() {
  if (ended_ != TITANS_GOING_ON) return -1;
  read_prompt();
  if (left_ == 0) {
    ended_ = TITANS_LENGTH;
    return -1;
  }
  if (!session_.standing().has_last)
    input_error("the session was reset while it generated", "start again with a prompt");
  const std::int64_t token = sampler_.choose(session_.last());
  session_.feed(&token, nullptr, 1, {});
  --left_;
  ended_ = why(token);
  if (ended_ == TITANS_GOING_ON && left_ == 0) ended_ = TITANS_LENGTH;
  return token;
}

}  // namespace titans
