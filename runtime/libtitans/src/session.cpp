#include "session.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "error.h"

namespace titans {

void Standing::consumed(std::int64_t id) {
  if (recent_count == kRecent)
    std::memmove(recent, recent + 1, (kRecent - 1) * sizeof *recent);
  else
    ++recent_count;
  recent[recent_count - 1] = id;
}

Session::Session(std::shared_ptr<Model> model) : model_(std::move(model)) {
  const std::vector<Group>& groups = model_->groups();
  std::size_t size = 0;
  for (const Group& group : groups) {
    offsets_.push_back(size);
    size += group.bytes * (group.rows ? kTables : kCarried);
  }
  check_memory(static_cast<std::int64_t>(size), "a session");
  arena_ = Arena(size);
  try {
    for (std::size_t i = 0; i < groups.size(); ++i) {
      values_.emplace_back(groups[i].rows ? kTables : kCarried);
      for (std::size_t j = 0; j < values_[i].size(); ++j)
        for (const Slot& slot : groups[i].slots) {
          const StateSpec& state = model_->manifest().states[slot.state];
          values_[i][j].emplace_back(model_->ort(), model_->ort().tensor(*state.type, concrete(state.shape),
                                                                         block(i, j) + slot.offset, slot.bytes));
        }
    }
  } catch (const std::runtime_error& error) {
    throw Error(TITANS_EXECUTION, text("ONNX Runtime does not take the state (", error.what(), ")"),
                "upgrade ONNX Runtime");
  }
  graphs_.resize(model_->manifest().graphs.size());
  blocks_.resize(groups.size());
  next_blocks_ = to_ = blocks_;
  last_.resize(static_cast<std::size_t>(model_->manifest().outputs));
  next_last_ = last_;
  reset();
}

void Session::reset() {
  const std::vector<Group>& groups = model_->groups();
  for (std::size_t i = 0; i < groups.size(); ++i) {
    blocks_[i] = 0;
    if (groups[i].rows) continue;
    for (const Slot& slot : groups[i].slots) {
      std::uint8_t* to = block(i, 0) + slot.offset;
      const auto& initial = model_->bundle().initial;
      const auto value = initial.find(model_->manifest().states[slot.state].name);
      if (value == initial.end())
        std::memset(to, 0, slot.bytes);
      else
        for (std::size_t at = 0; at + value->second.size() <= slot.bytes; at += value->second.size())
          std::memcpy(to + at, value->second.data(), value->second.size());
    }
  }
  stand({});
}

void Session::stand(const Standing& standing) {
  now_ = standing;
  poison_.clear();
  position_.store(now_.position, std::memory_order_relaxed);
}

void Session::check_sound() const {
  if (!poison_.empty())
    throw Error(TITANS_POISONED, text("this session stopped at position ", now_.position, " (", poison_, ")"),
                "call titans_session_reset to start it afresh, or titans_session_rewind to go on from a mark");
}

BoundGraph& Session::graph(std::size_t index) {
  if (!graphs_[index]) graphs_[index] = std::make_unique<BoundGraph>(*model_, index);
  return *graphs_[index];
}

void Session::feed(const std::int64_t* ids, const float* vectors, std::int64_t count, const titans_outputs& outputs) {
  check_sound();
  const Planner& planner = model_->planner();
  const std::int64_t features = model_->manifest().features, chunk = model_->manifest().chunk;
  next_blocks_ = blocks_;
  next_ = now_;
  try {
    for (std::int64_t offset = 0; offset < count;) {
      const Call next = planner.next(next_.position, count - offset);
      call(next.graph, ids ? ids + offset : nullptr, vectors ? vectors + offset * features : nullptr, next.length);
      collect(*graphs_[next.graph], offset, next.length, count, outputs);
      offset += next.length;
      if (!next.commits) planner.due(next_.position, [this](std::size_t index) { call(index, nullptr, nullptr, 0); });
    }
  } catch (const Error& error) {
    if (error.code == TITANS_NON_FINITE) poison_ = error.finding;
    throw;
  }
  if (ids)
    for (std::int64_t i = std::max<std::int64_t>(0, count - static_cast<std::int64_t>(kRecent)); i < count; ++i)
      next_.consumed(ids[i]);
  next_.commits += next_.position / chunk - now_.position / chunk;
  next_.has_last = true;
  if (outputs.last) std::memcpy(outputs.last, next_last_.data(), next_last_.size() * sizeof(float));
  last_.swap(next_last_);
  blocks_.swap(next_blocks_);
  now_ = next_;  // from here on it counts
  position_.store(now_.position, std::memory_order_relaxed);
}

void Session::call(std::size_t index, const std::int64_t* ids, const float* vectors, std::int64_t length) {
  BoundGraph& bound = graph(index);
  to_ = next_blocks_;
  for (const std::size_t group : bound.writes()) {
    std::uint8_t free = 0;
    while (free == blocks_[group] || free == next_blocks_[group]) ++free;
    to_[group] = free;
  }
  bound.load(ids, vectors, length, next_.position);
  bound.run(*this, next_blocks_, to_);
  bound.check_finite(*this, to_, next_.position, length);
  next_blocks_ = to_;
  if (bound.appends()) append(bound, length);
  next_.position += length;
}

// Puts new rows into their tables. Rows that count in `now_` stay: at the beginning of a table the other one is taken.
void Session::append(const BoundGraph& graph, std::int64_t length) {
  const std::vector<Group>& groups = model_->groups();
  for (std::size_t i = 0; i < groups.size(); ++i) {
    if (!groups[i].rows) continue;
    const std::int64_t start = next_.position % groups[i].length;
    if (start == 0) next_blocks_[i] = static_cast<std::uint8_t>(1 - blocks_[i]);
    for (const Slot& slot : groups[i].slots) {
      const std::size_t row = graph.row_bytes(slot.state);
      std::memcpy(block(i, next_blocks_[i]) + slot.offset + static_cast<std::size_t>(start) * row,
                  graph.rows(slot.state), static_cast<std::size_t>(length) * row);
    }
  }
}

void Session::collect(const BoundGraph& graph, std::int64_t offset, std::int64_t length, std::int64_t count,
                      const titans_outputs& outputs) {
  const auto width = static_cast<std::size_t>(model_->manifest().outputs);
  const auto layers = static_cast<std::size_t>(model_->manifest().surprise_layers);
  const auto tokens = static_cast<std::size_t>(length), done = static_cast<std::size_t>(offset);
  if (outputs.all) std::memcpy(outputs.all + done * width, graph.head(), tokens * width * sizeof(float));
  if (offset + length == count)
    std::memcpy(next_last_.data(), graph.head() + (tokens - 1) * width, width * sizeof(float));
  if (!layers) return;
  if (outputs.surprise && graph.surprise())
    std::memcpy(outputs.surprise + done * layers, graph.surprise(), tokens * layers * sizeof(float));
  for (std::size_t i = 0; graph.surprise() && i < tokens; ++i) {
    double sum = 0;
    for (std::size_t j = 0; j < layers; ++j) sum += graph.surprise()[i * layers + j];
    const double mean = sum / static_cast<double>(layers);
    next_.totals.total += mean;
    next_.totals.squares += mean * mean;
    next_.totals.highest = std::max(next_.totals.highest, mean);
    ++next_.totals.tokens;
  }
}

std::size_t Session::counted(const Group& group, const Slot& slot, std::int64_t position) const {
  if (!group.rows) return slot.bytes;
  return slot.bytes / static_cast<std::size_t>(group.length) * static_cast<std::size_t>(position % group.length);
}

std::span<const std::uint8_t> Session::tensor(std::size_t state) const {
  const std::vector<Group>& groups = model_->groups();
  for (std::size_t i = 0; i < groups.size(); ++i)
    for (const Slot& slot : groups[i].slots)
      if (slot.state == state) return {block(i, blocks_[i]) + slot.offset, counted(groups[i], slot, now_.position)};
  throw std::logic_error("a state without a place");
}

void Session::place(const Standing& standing, const std::vector<std::span<const std::uint8_t>>& tensors,
                    std::span<const float> last) {
  const std::vector<Group>& groups = model_->groups();
  for (std::size_t i = 0; i < groups.size(); ++i)
    for (const Slot& slot : groups[i].slots)
      std::memcpy(block(i, blocks_[i]) + slot.offset, tensors[slot.state].data(), tensors[slot.state].size());
  if (standing.has_last) std::copy(last.begin(), last.end(), last_.begin());
  stand(standing);
}

Mark Session::mark() const {
  Mark mark{model_, now_, {}, last_};
  for (std::size_t i = 0; i < model_->manifest().states.size(); ++i) {
    const auto data = tensor(i);
    mark.state.insert(mark.state.end(), data.begin(), data.end());
  }
  return mark;
}

std::vector<std::span<const std::uint8_t>> Session::cut(const Mark& mark) const {
  std::vector<std::span<const std::uint8_t>> tensors(model_->manifest().states.size());
  std::span<const std::uint8_t> left(mark.state);
  for (std::size_t state = 0; state < tensors.size(); ++state)
    for (const Group& group : model_->groups())
      for (const Slot& slot : group.slots)
        if (slot.state == state) {
          tensors[state] = left.first(counted(group, slot, mark.standing.position));
          left = left.subspan(tensors[state].size());
        }
  return tensors;
}

void Session::rewind(const Mark& mark) {
  if (mark.model != model_)
    throw Error(TITANS_INPUT, "this mark was made with another model",
                "rewind to a mark of a session of this one, or restore the other session's saved bytes");
  place(mark.standing, cut(mark), mark.last);
}

}  // namespace titans
