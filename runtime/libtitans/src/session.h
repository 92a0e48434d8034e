// One stream of memory: where it stands, and how a feed moves it. A stream moves in one assignment, at the end of a
// feed; whatever stops a feed before that has changed nothing.
#pragma once
#include <atomic>
#include <map>
#include <memory>
#include <string>

#include "bound_graph.h"
#include "titans.h"

namespace titans {

inline constexpr std::size_t kRecent = 8;  // ids that are kept for whoever decodes what follows

// Surprise over a whole stream: mean over the memory layers, per token.
struct Totals {
  std::int64_t tokens = 0;
  double total = 0, squares = 0, highest = 0;
};

// Everything a session is at one point of its stream but the tensors.
struct Standing {
  std::int64_t position = 0, commits = 0;
  Totals totals;
  std::int64_t recent[kRecent] = {};
  std::size_t recent_count = 0;
  bool has_last = false;
  bool has_turn = false;  // of a conversation, as Python's chat() left it
  std::int64_t turn = 0;

  void consumed(std::int64_t id);
};

// A copy of a session, for marks.
struct Mark {
  std::shared_ptr<Model> model;
  Standing standing;
  std::vector<std::uint8_t> state;  // the tensors of all groups, rows as far as they count
  std::vector<float> last;
};

class Session : private Blocks {
 public:
  explicit Session(std::shared_ptr<Model> model);

  Model& model() const { return *model_; }
  const std::shared_ptr<Model>& shared_model() const { return model_; }
  const Standing& standing() const { return now_; }
  const std::vector<float>& last() const { return last_; }
  std::int64_t position() const { return position_.load(std::memory_order_relaxed); }

  void check_sound() const;  // throws `Error` of TITANS_POISONED
  // Consumes checked inputs. Throws `Error`; the session is where it was.
  void feed(const std::int64_t* ids, const float* vectors, std::int64_t count, const titans_outputs& outputs);
  void reset();
  Mark mark() const;
  void rewind(const Mark& mark);

  // A state tensor as far as it counts: all of a carried one, and the rows that were written.
  std::span<const std::uint8_t> tensor(std::size_t state) const;
  // Goes where a saved session stood. `tensors` are as `tensor` gives them, by state.
  void place(const Standing& standing, const std::vector<std::span<const std::uint8_t>>& tensors,
             std::span<const float> last);

  std::map<std::string, std::string> digests;  // of the saved contents that it read or wrote, by place
  std::atomic<bool> busy{false};

 private:
  static constexpr std::size_t kCarried = 3, kTables = 2;  // blocks: what counts, and what a feed alternates between

  const OrtValue* value(std::size_t group, std::size_t block, std::size_t slot) const override {
    return values_[group][block][slot].get();
  }
  std::uint8_t* block(std::size_t group, std::size_t block) const override {
    return arena_.at(offsets_[group] + block * model_->groups()[group].bytes);
  }
  BoundGraph& graph(std::size_t index);
  void call(std::size_t index, const std::int64_t* ids, const float* vectors, std::int64_t length);
  void append(const BoundGraph& graph, std::int64_t length);
  void collect(const BoundGraph& graph, std::int64_t offset, std::int64_t length, std::int64_t count,
               const titans_outputs& outputs);
  std::size_t counted(const Group& group, const Slot& slot, std::int64_t position) const;
  void stand(const Standing& standing);
  std::vector<std::span<const std::uint8_t>> cut(const Mark& mark) const;

  std::shared_ptr<Model> model_;
  std::vector<std::size_t> offsets_;  // of each group's blocks in the arena
  Arena arena_;
  std::vector<std::vector<std::vector<Owned<OrtValue>>>> values_;  // by group, block and slot
  std::vector<std::unique_ptr<BoundGraph>> graphs_;
  Choice blocks_, next_blocks_, to_;  // which block of each group counts now, in the feed so far, and is written
  Standing now_, next_;
  std::vector<float> last_, next_last_;
  std::string poison_;
  std::atomic<std::int64_t> position_{0};
};

}  // namespace titans
