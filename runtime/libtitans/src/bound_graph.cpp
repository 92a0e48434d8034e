#include "bound_graph.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

#include "error.h"
#include "numbers.h"

namespace titans {
namespace {

bool has(const std::vector<TensorSpec>& tensors, const std::string& name) {
  return std::any_of(tensors.begin(), tensors.end(), [&name](const TensorSpec& each) { return each.name == name; });
}

std::size_t bytes_of(const TensorSpec& tensor) {
  return static_cast<std::size_t>(times(elements(tensor.shape), tensor.type->bytes));
}

}  // namespace

Arena::Arena(std::size_t bytes) : size_(bytes) {
  void* data = nullptr;
  if (posix_memalign(&data, 2 * kAlignment, std::max(bytes, kAlignment)) != 0) throw std::bad_alloc();
  std::memset(data, 0, bytes);
  data_.reset(static_cast<std::uint8_t*>(data));
}

void Arena::Free::operator()(std::uint8_t* data) const { std::free(data); }

BoundGraph::BoundGraph(Model& model, std::size_t graph)
    : model_(model), spec_(model.manifest().graphs[graph]), graph_(graph), session_(model.program(graph)) {
  const Manifest& manifest = model.manifest();
  rows_.resize(manifest.states.size());
  row_bytes_.resize(manifest.states.size());
  for (std::size_t i = 0; i < model.groups().size(); ++i) {
    const Group& group = model.groups()[i];
    const auto used = [&](const Slot& slot) { return has(spec_.inputs, manifest.states[slot.state].input); };
    if (std::any_of(group.slots.begin(), group.slots.end(), used)) reads_.push_back(i);
    if (!group.rows && has(spec_.outputs, manifest.states[group.slots[0].state].output)) writes_.push_back(i);
  }
  // Places for everything that is not a state: data, results, and rows before they are in their table.
  const auto is_state = [&manifest](const std::string& name, std::string StateSpec::* side, bool rows) {
    return std::any_of(manifest.states.begin(), manifest.states.end(),
                       [&](const StateSpec& state) { return state.*side == name && (rows || !state.rows); });
  };
  std::size_t size = 0;
  for (const TensorSpec& each : spec_.inputs)
    if (!is_state(each.name, &StateSpec::input, true)) size += aligned(bytes_of(each));
  for (const TensorSpec& each : spec_.outputs)
    if (!is_state(each.name, &StateSpec::output, false)) size += aligned(bytes_of(each));
  check_memory(static_cast<std::int64_t>(size), text("graph '", spec_.name, "'"));
  arena_ = Arena(size);
  std::size_t at = 0;
  const auto place = [&](const TensorSpec& each) {
    std::uint8_t* data = arena_.at(at);
    at += aligned(bytes_of(each));
    return std::pair(
        data, Owned<OrtValue>(model.ort(), model.ort().tensor(*each.type, concrete(each.shape), data, bytes_of(each))));
  };
  for (const TensorSpec& each : spec_.inputs) {
    if (is_state(each.name, &StateSpec::input, true)) continue;
    auto [data, value] = place(each);
    if (each.name == "position")
      position_ = reinterpret_cast<std::int64_t*>(data);
    else if (each.name == "length")
      length_ = reinterpret_cast<std::int64_t*>(data);
    else if (manifest.vectors)
      vectors_ = reinterpret_cast<float*>(data);
    else
      ids_ = reinterpret_cast<std::int64_t*>(data);
    inputs_.emplace_back(&each, std::move(value));
  }
  for (const TensorSpec& each : spec_.outputs) {
    if (is_state(each.name, &StateSpec::output, false)) continue;
    auto [data, value] = place(each);
    if (each.name == manifest.head_name()) head_ = reinterpret_cast<float*>(data);
    if (each.name == "surprise") surprise_ = reinterpret_cast<float*>(data);
    for (std::size_t i = 0; i < manifest.states.size(); ++i)
      if (manifest.states[i].output == each.name) {
        rows_[i] = data;
        row_bytes_[i] = bytes_of(each) / static_cast<std::size_t>(spec_.tokens);
        appends_ = true;
      }
    outputs_.emplace_back(&each, std::move(value));
  }
  bindings_.reserve(kBindings);
  key_.reserve(2 * model.groups().size());
}

void BoundGraph::load(const std::int64_t* ids, const float* vectors, std::int64_t length, std::int64_t position) {
  const auto real = static_cast<std::size_t>(length), all = static_cast<std::size_t>(spec_.tokens);
  const auto features = static_cast<std::size_t>(model_.manifest().features);
  if (ids_) {
    std::memcpy(ids_, ids, real * sizeof *ids_);
    std::memset(ids_ + real, 0, (all - real) * sizeof *ids_);
  }
  if (vectors_) {
    std::memcpy(vectors_, vectors, real * features * sizeof *vectors_);
    std::memset(vectors_ + real * features, 0, (all - real) * features * sizeof *vectors_);
  }
  if (position_) *position_ = position;
  if (length_) *length_ = length;
}

void BoundGraph::run(const Blocks& blocks, const Choice& from, const Choice& to) {
  key_.clear();
  for (const std::size_t group : reads_) key_.push_back(from[group]);
  for (const std::size_t group : writes_) key_.push_back(to[group]);
  OrtBinding* binding = nullptr;
  for (Binding& each : bindings_)
    if (each.key == key_) {
      each.used = ++uses_;
      binding = each.value.get();
      break;
    }
  try {
    if (!binding) binding = bind(blocks, from, to);
    const DenormalsAreZero denormals;
    model_.ort().check(model_.ort().run(session_, binding));
  } catch (const std::runtime_error& error) {
    throw Error(TITANS_EXECUTION, text("graph '", spec_.name, "' failed (", error.what(), ")"),
                "nothing has changed: try again, and if it fails again check the bundle with `titans verify`");
  }
}

OrtBinding* BoundGraph::bind(const Blocks& blocks, const Choice& from, const Choice& to) {
  const Ort& ort = model_.ort();
  const Manifest& manifest = model_.manifest();
  Owned<OrtBinding> made(ort, ort.binding(session_));
  for (const auto& [spec, value] : inputs_) ort.input(made.get(), spec->name.c_str(), value.get());
  for (const auto& [spec, value] : outputs_) ort.output(made.get(), spec->name.c_str(), value.get());
  for (const std::string& name : model_.bundle().graphs[graph_].checked.widened)
    ort.input(made.get(), name.c_str(), model_.weight(name, true));
  for (const std::size_t group : reads_) {
    const std::vector<Slot>& slots = model_.groups()[group].slots;
    for (std::size_t i = 0; i < slots.size(); ++i) {
      const std::string& name = manifest.states[slots[i].state].input;
      if (has(spec_.inputs, name)) ort.input(made.get(), name.c_str(), blocks.value(group, from[group], i));
    }
  }
  for (const std::size_t group : writes_) {
    const std::vector<Slot>& slots = model_.groups()[group].slots;
    for (std::size_t i = 0; i < slots.size(); ++i)
      ort.output(made.get(), manifest.states[slots[i].state].output.c_str(), blocks.value(group, to[group], i));
  }
  if (bindings_.size() < kBindings) {
    bindings_.push_back({key_, std::move(made), ++uses_});
    return bindings_.back().value.get();
  }
  Binding& oldest =
      *std::min_element(bindings_.begin(), bindings_.end(), [](auto& a, auto& b) { return a.used < b.used; });
  oldest = {key_, std::move(made), ++uses_};
  return oldest.value.get();
}

void BoundGraph::check_finite(const Blocks& blocks, const Choice& to, std::int64_t position,
                              std::int64_t length) const {
  const Manifest& manifest = model_.manifest();
  if (finite(blocks, to, spec_.tokens)) return;
  std::int64_t first = length;
  const auto look = [&](const float* numbers, std::int64_t width) {
    for (std::int64_t token = 0; numbers && token < first; ++token)
      if (!all_finite(numbers + token * width, static_cast<std::size_t>(width))) first = token;
  };
  look(surprise_, manifest.surprise_layers);
  look(head_, manifest.outputs);
  std::size_t worst = manifest.states.size();
  for (const std::size_t group : writes_)
    for (const Slot& slot : model_.groups()[group].slots)
      if (!all_finite(*manifest.states[slot.state].type, blocks.block(group, to[group]) + slot.offset, slot.bytes))
        worst = std::min(worst, slot.state);
  for (std::size_t i = 0; i < manifest.states.size(); ++i)
    if (rows_[i] && !all_finite(*manifest.states[i].type, rows_[i], row_bytes_[i] * static_cast<std::size_t>(length)))
      worst = std::min(worst, i);
  if (first == length && worst == manifest.states.size()) return;  // a false alarm: padding
  const std::int64_t token = position + (first < length ? first : length - 1);
  const std::string where = worst < manifest.states.size() ? text("first in state '", manifest.states[worst].name, "'")
                                                           : "in the outputs only, in no layer's state";
  throw Error(TITANS_NON_FINITE,
              text("graph '", spec_.name, "' returned numbers that are not finite at token ", token, ", ", where),
              text("go back with titans_session_reset, titans_session_rewind or a saved state, and ",
                   token ? "if it recurs train with memory.surprise_bound set"
                         : "if a new session meets them at its first token, export a sound checkpoint"));
}

// Whether everything that the last run wrote is finite.
bool BoundGraph::finite(const Blocks& blocks, const Choice& to, std::int64_t length) const {
  const Manifest& manifest = model_.manifest();
  const auto count = [length](std::int64_t width) { return static_cast<std::size_t>(length * width); };
  bool fine = true;
  if (surprise_) fine &= all_finite(surprise_, count(manifest.surprise_layers));
  if (head_) fine &= all_finite(head_, count(manifest.outputs));
  for (std::size_t i = 0; appends_ && i < rows_.size(); ++i)
    if (rows_[i])
      fine &= all_finite(*manifest.states[i].type, rows_[i], row_bytes_[i] * static_cast<std::size_t>(length));
  for (const std::size_t group : writes_)
    for (const Slot& slot : model_.groups()[group].slots)
      fine &= all_finite(*manifest.states[slot.state].type, blocks.block(group, to[group]) + slot.offset, slot.bytes);
  return fine;
}

}  // namespace titans
