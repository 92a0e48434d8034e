// One graph of one session: fixed places for the data that goes in and comes out, and bindings to the blocks of state
// that it met lately. Does not know when a graph is due.
#pragma once
#include <memory>
#include <string>

#include "model.h"

namespace titans {

inline constexpr std::size_t kBindings = 32;  // that are kept; a stream that also reads prompts meets up to 25

// Memory of a session, aligned and zero at the beginning.
class Arena {
 public:
  Arena() = default;
  explicit Arena(std::size_t bytes);
  std::uint8_t* at(std::size_t offset) const { return data_.get() + offset; }
  std::size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(std::uint8_t* data) const;
  };
  std::unique_ptr<std::uint8_t, Free> data_;
  std::size_t size_ = 0;
};

// Which block of each group of states is read or written; by group.
using Choice = std::vector<std::uint8_t>;

// Tensors over the blocks of a session's arena.
class Blocks {
 public:
  virtual ~Blocks() = default;
  virtual const OrtValue* value(std::size_t group, std::size_t block, std::size_t slot) const = 0;
  virtual std::uint8_t* block(std::size_t group, std::size_t block) const = 0;
};

class BoundGraph {
 public:
  BoundGraph(Model& model, std::size_t graph);

  const std::vector<std::size_t>& writes() const { return writes_; }  // groups of carried states
  bool appends() const { return appends_; }                           // whether it returns rows

  // Puts the data of one call in place; what is right of `length` is zero padding. Of a commit there is none.
  void load(const std::int64_t* ids, const float* vectors, std::int64_t length, std::int64_t position);
  // Runs, reading the blocks `from` and writing the blocks `to`. Throws `Error`.
  void run(const Blocks& blocks, const Choice& from, const Choice& to);
  // Throws `Error` of TITANS_NON_FINITE if a number that the last run returned, padding aside, is not finite.
  void check_finite(const Blocks& blocks, const Choice& to, std::int64_t position, std::int64_t length) const;

  const float* head() const { return head_; }          // tokens x outputs
  const float* surprise() const { return surprise_; }  // tokens x layers; null without memory
  const std::uint8_t* rows(std::size_t state) const { return rows_[state]; }
  std::size_t row_bytes(std::size_t state) const { return row_bytes_[state]; }

 private:
  struct Binding {
    Choice key;
    Owned<OrtBinding> value;
    std::uint64_t used = 0;
  };
  OrtBinding* bind(const Blocks& blocks, const Choice& from, const Choice& to);
  bool finite(const Blocks& blocks, const Choice& to, std::int64_t length) const;

  Model& model_;
  const GraphSpec& spec_;
  std::size_t graph_;
  OrtSession* session_;
  Arena arena_;
  std::vector<std::size_t> writes_, reads_;
  bool appends_ = false;
  std::vector<std::pair<const TensorSpec*, Owned<OrtValue>>> inputs_, outputs_;  // besides carried states
  std::int64_t *ids_ = nullptr, *position_ = nullptr, *length_ = nullptr;
  float *vectors_ = nullptr, *head_ = nullptr, *surprise_ = nullptr;
  std::vector<const std::uint8_t*> rows_;  // by state
  std::vector<std::size_t> row_bytes_;
  std::vector<Binding> bindings_;
  std::uint64_t uses_ = 0;
  Choice key_;
};

}  // namespace titans
