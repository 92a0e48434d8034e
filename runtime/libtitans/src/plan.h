// How a piece of a stream is cut into graph calls: pure arithmetic on positions. Does not know tensors or tokens.
#pragma once
#include <algorithm>
#include <vector>

#include "manifest.h"

namespace titans {

struct Call {
  std::size_t graph = 0;
  std::int64_t length = 0;  // tokens
  bool commits = false;     // what is due at its end is fused into it
};

class Planner {
 public:
  explicit Planner(const Manifest& manifest) : chunk_(manifest.chunk) {
    periods_.push_back(chunk_);
    for (const StateSpec& state : manifest.states)
      if (state.rows) periods_.push_back(state.period());
    for (std::size_t i = manifest.graphs.size(); i-- > 0;) {  // backwards: the first of a kind counts
      const GraphSpec& graph = manifest.graphs[i];
      if (graph.kind == GraphKind::prefill) prefill_ = static_cast<int>(i);
      if (graph.kind == GraphKind::step) step_ = i;
      if (graph.kind != GraphKind::extend) continue;
      extend_ = static_cast<int>(i);
      extend_tokens_ = graph.tokens;
    }
    for (const Due& due : manifest.schedule)
      (manifest.graphs[due.graph].kind == GraphKind::commit ? commits_ : steps_).push_back(due);
  }

  // The first call of `left` tokens that follow `position` consumed ones.
  Call next(std::int64_t position, std::int64_t left) const {
    if (prefill_ >= 0 && left >= chunk_ && position % chunk_ == 0)
      return {static_cast<std::size_t>(prefill_), chunk_, true};
    if (extend_ >= 0) {
      const std::int64_t length = std::min({left, extend_tokens_, to_boundary(position)});
      // It does a whole chunk's work however few tokens are real.
      if (length >= std::max<std::int64_t>(2, chunk_ / 8)) return {static_cast<std::size_t>(extend_), length, false};
    }
    for (const Due& due : steps_)
      if ((position + 1) % due.period == due.phase) return {due.graph, 1, false};
    return {step_, 1, false};
  }

  // Calls `run` with each commit that is due once `position` tokens are consumed, in order.
  template <class Run>
  void due(std::int64_t position, const Run& run) const {
    for (const Due& due : commits_)
      if (position % due.period == due.phase) run(due.graph);
  }

 private:
  // Tokens up to the next position where a chunk ends, a commit may be due or a table of rows is full.
  std::int64_t to_boundary(std::int64_t position) const {
    std::int64_t least = INT64_MAX;
    for (const std::int64_t period : periods_) least = std::min(least, period - position % period);
    for (const Due& due : commits_) {
      const std::int64_t wait = (due.phase - position - 1) % due.period;
      least = std::min(least, (wait < 0 ? wait + due.period : wait) + 1);
    }
    return least;
  }

  std::int64_t chunk_, extend_tokens_ = 0;
  int prefill_ = -1, extend_ = -1;
  std::size_t step_ = 0;
  std::vector<std::int64_t> periods_;
  std::vector<Due> commits_, steps_;
};

}  // namespace titans
