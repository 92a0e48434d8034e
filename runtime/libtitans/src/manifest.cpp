#include "manifest.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "error.h"
#include "sha256.h"

namespace titans {
namespace {

constexpr std::int64_t kMostDimension = 1 << 30, kFew = (std::int64_t{1} << 31) - 1;
constexpr double kAnyFloat = std::numeric_limits<double>::max();
constexpr std::size_t kMostEnds = 256, kLongestName = 128;
constexpr std::string_view kFile = "manifest.json: ";

bool is_alpha(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_'; }

// A name that is safe on every system: no device of Windows, nothing hidden, no way out of a folder.
bool is_plain(std::string_view name) {
  if (name.empty() || name.size() > kLongestName || !is_alpha(name[0])) return false;
  if (!std::all_of(name.begin(), name.end(), [](char c) { return is_alpha(c) || c == '-' || c == '.'; })) return false;
  std::string stem(name.substr(0, name.find('.')));
  for (char& c : stem) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  if (stem == "con" || stem == "prn" || stem == "aux" || stem == "nul") return false;
  return !(stem.size() == 4 && (stem.starts_with("com") || stem.starts_with("lpt")) && std::isdigit(stem[3]));
}

bool stays_inside(std::string_view path) {
  for (;;) {
    const auto slash = path.find('/');
    if (!is_plain(path.substr(0, slash))) return false;
    if (slash == std::string_view::npos) return true;
    path.remove_prefix(slash + 1);
  }
}

bool is_digest(std::string_view value) {
  return value.size() == 64 && value.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

// A value in the document, and the name of its place.
class Place {
 public:
  Place(const Json& value, std::string path) : value_(value), path_(std::move(path)) {}

  [[noreturn]] void refuse(std::string_view expected) const {
    bundle_error(text(kFile, path_.empty() ? "the document" : path_, " must be ", expected), kExportAgain);
  }
  const Json* maybe(std::string_view field) const {
    if (value_.kind != Json::Kind::object) refuse("an object");
    const Json* found = value_.find(field);
    return found && found->kind != Json::Kind::null ? found : nullptr;
  }
  Place at(std::string_view field) const {
    if (value_.kind != Json::Kind::object) refuse("an object");
    const Json* found = value_.find(field);
    if (!found)
      bundle_error(text(kFile, path_, path_.empty() ? "" : " ", "has no field \"", field, "\""), kExportAgain);
    return {*found, joined(field)};
  }
  std::optional<Place> when(std::string_view field) const {
    const Json* found = maybe(field);
    return found ? std::optional(Place(*found, joined(field))) : std::nullopt;
  }
  std::vector<Place> list(std::size_t most = SIZE_MAX) const {
    if (value_.kind != Json::Kind::list || value_.items.size() > most) refuse("a list");
    std::vector<Place> found;
    for (std::size_t i = 0; i < value_.items.size(); ++i) found.emplace_back(value_.items[i], text(path_, "[", i, "]"));
    return found;
  }
  std::int64_t whole(std::int64_t least, std::int64_t most) const {
    if (value_.kind != Json::Kind::integer || value_.integer < least || value_.integer > most)
      refuse(titans::text("a whole number of at least ", least,
                          most < kMostInteger ? titans::text(" and at most ", most) : ""));
    return value_.integer;
  }
  double number(double least, double most) const {
    double found = value_.real;
    if (value_.kind == Json::Kind::integer)
      found = static_cast<double>(value_.integer);
    else if (value_.kind == Json::Kind::large_integer)
      found = std::strtod(value_.text.c_str(), nullptr);
    else if (value_.kind != Json::Kind::real)
      refuse("a number");
    if (!(found >= least && found <= most)) refuse("a number within its range");
    return found;
  }
  const std::string& words() const {
    if (value_.kind != Json::Kind::text || value_.text.empty()) refuse("a string that is not empty");
    return value_.text;
  }
  const std::string& plain() const {
    if (value_.kind != Json::Kind::text || !is_plain(value_.text)) refuse("a plain name");
    return value_.text;
  }
  const std::string& inside() const {
    if (value_.kind != Json::Kind::text || !stays_inside(value_.text))
      refuse("a relative path of plain names that stays inside the bundle");
    return value_.text;
  }
  const std::string& digest() const {
    if (value_.kind != Json::Kind::text || !is_digest(value_.text)) refuse("a SHA-256 digest");
    return value_.text;
  }
  const ElementType* type() const {
    const ElementType* found = value_.kind == Json::Kind::text ? by_name(value_.text) : nullptr;
    if (!found || found->onnx == kBfloat16) refuse("an element type such as float32");
    return found;
  }
  Sizes shape() const {
    Sizes found;
    for (const Place& size : list(kMostAxes)) {
      const bool batch = size.value_.kind == Json::Kind::text && size.value_.text == "batch";
      found.push_back(batch ? kBatch : size.whole(1, kMostDimension));
    }
    return found;
  }

 private:
  std::string joined(std::string_view field) const {
    return path_.empty() ? std::string(field) : text(path_, ".", field);
  }
  template <class... Parts>
  static std::string text(const Parts&... parts) {
    return titans::text(parts...);
  }
  const Json& value_;
  std::string path_;
};

DataFile data_file(const Place& place) {
  DataFile file{place.at("file").inside(), place.at("sha256").digest()};
  if (const auto bytes = place.when("bytes")) file.bytes = bytes->whole(0, kMostInteger);
  return file;
}

StateSpec state_of(const Place& place) {
  StateSpec state;
  state.name = place.at("name").words();
  const std::string& kind = place.at("kind").words();
  if (kind != "carried" && kind != "rows") place.at("kind").refuse("one of carried, rows");
  state.rows = kind == "rows";
  state.type = place.at("dtype").type();
  state.shape = place.at("shape").shape();
  const Place initial = place.at("initial");
  const std::string& start = initial.at("kind").words();
  if (start != "zeros" && start != "constant" && start != "learned")
    initial.at("kind").refuse("one of zeros, constant, learned");
  state.initial = start == "zeros"      ? InitialKind::zeros
                  : start == "constant" ? InitialKind::constant
                                        : InitialKind::learned;
  if (const auto value = initial.when("value")) {
    state.value = value->number(-kAnyFloat, kAnyFloat);
    state.value_said = true;
  }
  if (const auto tensor = initial.when("tensor")) state.tensor = tensor->words();
  state.input = place.at("input").words();
  state.output = place.at("output").words();
  return state;
}

std::vector<TensorSpec> tensors_of(const Place& place) {
  std::vector<TensorSpec> found;
  for (const Place& each : place.list())
    found.push_back({each.at("name").words(), each.at("dtype").type(), each.at("shape").shape()});
  return found;
}

GraphSpec graph_of(const Place& place) {
  GraphSpec graph;
  graph.name = place.at("name").plain();
  const std::string& kind = place.at("kind").words();
  if (kind == "prefill")
    graph.kind = GraphKind::prefill;
  else if (kind == "extend")
    graph.kind = GraphKind::extend;
  else if (kind == "step")
    graph.kind = GraphKind::step;
  else if (kind == "commit")
    graph.kind = GraphKind::commit;
  else
    place.at("kind").refuse("one of prefill, extend, step, commit");
  graph.file = {place.at("file").inside(), place.at("sha256").digest()};
  graph.tokens = place.at("tokens").whole(0, kMostInteger);
  graph.inputs = tensors_of(place.at("inputs"));
  graph.outputs = tensors_of(place.at("outputs"));
  if (const auto cpu = place.when("cpu")) graph.cpu = data_file(*cpu);
  if (const auto fused = place.when("fused")) graph.fused = data_file(*fused);
  return graph;
}

std::vector<std::int64_t> ends_of(const Place& place, std::string_view field) {
  std::vector<std::int64_t> found;
  if (const auto ids = place.when(field))
    for (const Place& id : ids->list(kMostEnds)) found.push_back(id.whole(0, kMostInteger));
  return found;
}

void read_generation(const Place& place, Manifest& to) {
  if (const auto it = place.when("temperature")) to.temperature = it->number(0, kAnyFloat);
  if (const auto it = place.when("top_k")) to.top_k = it->whole(1, kFew);
  if (const auto it = place.when("top_p")) to.top_p = it->number(1e-9, 1);
  if (const auto it = place.when("min_p")) to.min_p = it->number(0, 1);
  if (const auto it = place.when("repetition_penalty")) to.repetition_penalty = it->number(1e-3, kAnyFloat);
  if (const auto it = place.when("max_new_tokens")) to.max_new_tokens = it->whole(1, kFew);
}

void read_inputs(const Place& inputs, Manifest& to) {
  const std::string& kind = inputs.at("kind").words();
  if (kind == "tokens") {
    to.outputs = inputs.at("vocab_size").whole(1, kMostDimension);
  } else if (kind == "continuous") {
    to.vectors = true;
    to.features = inputs.at("features").whole(1, kMostDimension);
    to.outputs = inputs.at("targets").whole(1, kMostDimension);
  } else {
    inputs.at("kind").refuse("one of tokens, continuous");
  }
}

// What a saved state depends on: the weights, the chunk and the state table, in the spelling that Python hashes.
std::string identity_of(const Manifest& manifest) {
  Json inputs = Json::object_of();
  if (manifest.vectors)
    inputs.with("kind", std::string("continuous"))
        .with("features", manifest.features)
        .with("targets", manifest.outputs);
  else
    inputs.with("kind", std::string("tokens")).with("vocab_size", manifest.outputs);
  std::vector<Json> states;
  static constexpr const char* kKinds[] = {"zeros", "constant", "learned"};
  for (const StateSpec& state : manifest.states) {
    std::vector<Json> shape;
    for (const std::int64_t size : state.shape)
      shape.push_back(size == kBatch ? Json(std::string("batch")) : Json(size));
    Json initial = Json::object_of();
    initial.with("kind", std::string(kKinds[static_cast<int>(state.initial)]));
    if (state.value_said) initial.with("value", state.value);
    if (!state.tensor.empty()) initial.with("tensor", state.tensor);
    Json each = Json::object_of();
    each.with("name", state.name).with("kind", std::string(state.rows ? "rows" : "carried"));
    each.with("dtype", std::string(state.type->name)).with("shape", Json::list_of(std::move(shape)));
    each.with("initial", std::move(initial)).with("input", state.input).with("output", state.output);
    states.push_back(std::move(each));
  }
  std::vector<Json> table{Json(manifest.weights.sha256), Json(manifest.chunk), std::move(inputs),
                          Json::list_of(std::move(states))};
  const std::string facts = dump_json(Json::list_of(std::move(table)), true, false);
  return sha256_hex(facts.data(), facts.size());
}

// The document's own checksum: what was changed by accident is noticed.
void check_seal(const Json& document, const Place& root) {
  const std::string& written = root.at("sha256").digest();
  Json content = Json::object_of();
  for (std::size_t i = 0; i < document.names.size(); ++i)
    if (document.names[i] != "sha256") content.with(document.names[i], document.items[i]);
  const std::string spelt = dump_json(content, true, true);
  if (sha256_hex(spelt.data(), spelt.size()) != written)
    bundle_error("manifest.json was changed after it was written: its checksum does not match");
}

}  // namespace

const GraphSpec* Manifest::graph(GraphKind kind) const {
  for (const GraphSpec& graph : graphs)
    if (graph.kind == kind) return &graph;
  return nullptr;
}

const std::string& Manifest::data_name() const {
  static const std::string ids = "input_ids", inputs = "inputs";
  return vectors ? inputs : ids;
}

const std::string& Manifest::head_name() const {
  static const std::string logits = "logits", predictions = "predictions";
  return vectors ? predictions : logits;
}

bool Manifest::left_out(const std::string& file) const {
  return std::find(omitted.begin(), omitted.end(), file) != omitted.end();
}

Manifest read_manifest(std::string_view text_of_it) {
  Json document;
  try {
    document = parse_json(text_of_it);
  } catch (const std::invalid_argument& error) {
    bundle_error(text("manifest.json cannot be read (", error.what(), ")"),
                 "it may be truncated: copy the bundle again");
  }
  const Place root(document, "");
  if (root.at("format").words() != "titans-bundle") root.at("format").refuse("\"titans-bundle\"");
  if (const auto version = root.at("format_version").whole(1, kMostInteger); version > 1)
    bundle_error(text(kFile, "format_version is ", version, ", this library reads up to 1"),
                 "install a newer libtitans");
  Manifest manifest;
  const Place model = root.at("model");
  manifest.name = model.at("name").words();
  manifest.variant = model.at("variant").words();
  manifest.dtype = root.at("dtype").words();
  read_inputs(root.at("inputs"), manifest);
  manifest.chunk = root.at("chunk").whole(1, kMostInteger);
  for (const Place& each : root.at("states").list()) manifest.states.push_back(state_of(each));
  for (const Place& each : root.at("graphs").list()) manifest.graphs.push_back(graph_of(each));
  for (const Place& each : root.at("schedule").list()) {
    const std::string& name = each.at("graph").words();
    const auto found = std::find_if(manifest.graphs.begin(), manifest.graphs.end(),
                                    [&name](const GraphSpec& graph) { return graph.name == name; });
    if (found == manifest.graphs.end()) each.at("graph").refuse("the name of a graph");
    Due due{static_cast<std::size_t>(found - manifest.graphs.begin()), each.at("period").whole(1, kMostInteger)};
    if (const auto phase = each.when("phase")) due.phase = phase->whole(0, kMostInteger);
    manifest.schedule.push_back(due);
  }
  manifest.weights = data_file(root.at("weights"));
  if (const auto initial = root.when("initial_state")) manifest.initial_state = data_file(*initial);
  if (const auto providers = root.when("providers"))
    for (const Place& each : providers->list()) manifest.providers.push_back(each.words());
  if (const auto omitted = root.when("omitted"))
    for (const Place& each : omitted->list()) manifest.omitted.push_back(each.inside());
  if (const auto ends = root.when("ends")) {
    manifest.eos = ends_of(*ends, "eos");
    manifest.stop = ends_of(*ends, "stop");
  }
  if (const auto generation = root.when("generation")) read_generation(*generation, manifest);
  for (const StateSpec& state : manifest.states) {
    const std::int64_t bytes = state.bytes();
    if (__builtin_add_overflow(manifest.stream_bytes, bytes, &manifest.stream_bytes)) manifest.stream_bytes = kTooMany;
  }
  check_contract(manifest);
  check_seal(document, root);
  manifest.state_identity = identity_of(manifest);
  return manifest;
}

}  // namespace titans
