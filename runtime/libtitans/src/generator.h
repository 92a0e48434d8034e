// Generation: a prompt that is read in pieces, and tokens that are chosen and fed one by one. After an error the
// session stands after the last call that completed.
#pragma once
#include "sampling.h"
#include "session.h"

namespace titans {

class Generator {
 public:
  // Checks everything; the prompt is fed by the first `next`. Throws `Error` of TITANS_INPUT.
  Generator(Session& session, std::span<const std::int64_t> prompt, bool has_prompt, const titans_sampling& sampling);
  // The next token, or -1 where none is left. Throws `Error`.
  std::int64_t next();
  titans_ended ended() const { return ended_; }

 private:
  void read_prompt();
  titans_ended why(std::int64_t token) const;

  Session& session_;
  std::vector<std::int64_t> prompt_, eos_, stop_;
  std::size_t read_ = 0;
  std::int64_t left_;
  Sampler sampler_;
  titans_ended ended_ = TITANS_GOING_ON;
};

titans_sampling sampling_defaults(const Manifest& manifest);
// Throws `Error` of TITANS_INPUT for ids outside of the vocabulary.
void check_ids(const Manifest& manifest, std::span<const std::int64_t> ids);

}  // namespace titans
