// The contract between graphs, state table and schedule: what a manifest must hold together. Does not open the graphs:
// that they agree with the manifest is `graph_check`'s business.
#include <algorithm>
#include <map>
#include <set>

#include "error.h"
#include "manifest.h"

namespace titans {
namespace {

// More is damage or an attack.
constexpr std::size_t kMostGraphs = 256, kMostStates = 16'384;
constexpr std::int64_t kMostBytes = std::int64_t{1} << 36;

[[noreturn]] void misfit(const std::string& what) { bundle_error(text("manifest.json: ", what), kExportAgain); }

void unique(const std::string& what, const std::vector<std::string>& names) {
  std::set<std::string> seen;
  for (const std::string& name : names)
    if (!seen.insert(name).second) misfit(text(what, " '", name, "' appears more than once"));
}

void check_states(const Manifest& manifest) {
  std::vector<std::string> names, tensors;
  for (const StateSpec& state : manifest.states) {
    const std::size_t axis = state.rows ? 1 : 0;
    for (std::size_t i = 0; i < std::max(state.shape.size(), axis + 1); ++i)
      if (i >= state.shape.size() || (state.shape[i] == kBatch) != (i == axis))
        misfit(text("the shape of state '", state.name, "' must have \"batch\" at axis ", axis, " alone"));
    if (state.name == "__metadata__" || state.name == "last_output")
      misfit(text("a state is called '", state.name, "', which is the name of something else in saved sessions"));
    if ((state.initial == InitialKind::learned) != !state.tensor.empty())
      misfit(text("state '", state.name, "' names a tensor that it does not start from, or the other way round"));
    if (state.initial == InitialKind::learned && !manifest.initial_state)
      misfit(text("state '", state.name, "' starts from a learned tensor, and initial_state is null"));
    names.push_back(state.name);
    tensors.insert(tensors.end(), {state.input, state.output});
  }
  unique("state name", names);
  unique("state tensor", tensors);
}

struct Allowed {
  std::vector<TensorSpec> inputs, outputs;
};

TensorSpec state_tensor(const StateSpec& state, const std::string& name, std::int64_t rows = 0) {
  TensorSpec tensor{name, state.type, state.shape};
  if (rows) tensor.shape[0] = rows;
  return tensor;
}

Allowed allowed_for(const Manifest& manifest, const GraphSpec& graph) {
  const ElementType *int64 = by_onnx(kInt64), *float32 = by_onnx(kFloat32);
  Allowed allowed;
  for (const StateSpec& state : manifest.states) {
    allowed.inputs.push_back(state_tensor(state, state.input));
    if (!state.rows)
      allowed.outputs.push_back(state_tensor(state, state.output));
    else if (graph.kind == GraphKind::step || graph.kind == GraphKind::extend)
      allowed.outputs.push_back(state_tensor(state, state.output, graph.tokens));
  }
  allowed.inputs.push_back({"position", int64, {kBatch}});
  if (graph.kind == GraphKind::extend) allowed.inputs.push_back({"length", int64, {kBatch}});
  if (graph.tokens && manifest.vectors)
    allowed.inputs.push_back({"inputs", float32, {kBatch, graph.tokens, manifest.features}});
  else if (graph.tokens)
    allowed.inputs.push_back({"input_ids", int64, {kBatch, graph.tokens}});
  if (graph.tokens) {
    allowed.outputs.push_back({manifest.head_name(), float32, {kBatch, graph.tokens, manifest.outputs}});
    allowed.outputs.push_back({"surprise", float32, {kBatch, graph.tokens, manifest.surprise_layers}});
  }
  return allowed;
}

void check_tensors(const GraphSpec& graph, const char* side, const std::vector<TensorSpec>& listed,
                   const std::vector<TensorSpec>& allowed) {
  std::set<std::string> seen;
  std::map<std::string, const TensorSpec*> known;
  for (const TensorSpec& each : allowed) known.emplace(each.name, &each);
  for (const TensorSpec& tensor : listed) {
    if (!seen.insert(tensor.name).second)
      misfit(text("graph '", graph.name, "' ", side, " '", tensor.name, "' appears more than once"));
    const auto found = known.find(tensor.name);
    if (found == known.end()) misfit(text("graph '", graph.name, "' has an unknown ", side, " '", tensor.name, "'"));
    if (tensor.type != found->second->type || tensor.shape != found->second->shape)
      misfit(text("graph '", graph.name, "' has ", side, " '", tensor.name,
                  "' of another type or shape than the table's"));
  }
}

bool lists(const std::vector<TensorSpec>& tensors, const std::string& name) {
  return std::any_of(tensors.begin(), tensors.end(), [&name](const TensorSpec& each) { return each.name == name; });
}

void check_graph(const Manifest& manifest, const GraphSpec& graph) {
  const std::int64_t tokens = graph.tokens;
  const bool fits = graph.kind == GraphKind::prefill  ? tokens == manifest.chunk
                    : graph.kind == GraphKind::extend ? tokens >= 1 && tokens <= manifest.chunk
                                                      : tokens == (graph.kind == GraphKind::step ? 1 : 0);
  if (!fits) misfit(text("graph '", graph.name, "' holds ", tokens, " tokens, with chunk ", manifest.chunk));
  const Allowed allowed = allowed_for(manifest, graph);
  check_tensors(graph, "input", graph.inputs, allowed.inputs);
  check_tensors(graph, "output", graph.outputs, allowed.outputs);
  if (tokens && !lists(graph.inputs, manifest.data_name()))
    misfit(text("graph '", graph.name, "' has no input '", manifest.data_name(), "'"));
  if (tokens && !lists(graph.outputs, manifest.head_name()))
    misfit(text("graph '", graph.name, "' has no output '", manifest.head_name(), "'"));
  bool some = false, every = true;
  for (const StateSpec& state : manifest.states)
    if (state.rows) (lists(graph.outputs, state.output) ? some : every) = lists(graph.outputs, state.output);
  if (some && !every) misfit(text("graph '", graph.name, "' returns rows of some states, and not of others"));
}

void check_schedule(const Manifest& manifest) {
  std::vector<bool> scheduled(manifest.graphs.size());
  const GraphSpec* first_step = manifest.graph(GraphKind::step);
  for (const Due& due : manifest.schedule) {
    const GraphSpec& graph = manifest.graphs[due.graph];
    if (graph.kind != GraphKind::commit && (graph.kind != GraphKind::step || &graph == first_step))
      misfit(text("schedule names '", graph.name, "', which is neither a commit nor a step graph after the first"));
    if (due.phase >= due.period) misfit(text("schedule runs '", graph.name, "' at a position that never comes"));
    if (manifest.chunk % due.period)
      misfit(text("schedule runs '", graph.name, "' every ", due.period, " tokens, which does not divide the chunk"));
    scheduled[due.graph] = true;
  }
  for (std::size_t i = 0; i < manifest.graphs.size(); ++i) {
    const GraphSpec& graph = manifest.graphs[i];
    if (graph.kind != GraphKind::step || &graph == first_step) continue;
    if (!scheduled[i]) misfit(text("step graph '", graph.name, "' is not in the schedule"));
    if (manifest.graph(GraphKind::extend)) misfit("an extend graph would jump over tokens of another step graph");
  }
}

}  // namespace

void check_contract(Manifest& manifest) {
  if (manifest.graphs.size() > kMostGraphs || manifest.states.size() > kMostStates)
    misfit("there are more graphs or states than any model has");
  check_states(manifest);
  if (manifest.stream_bytes > kMostBytes) misfit(text("the state of a stream has more than ", kMostBytes, " bytes"));
  std::vector<std::string> names;
  int prefills = 0, extends = 0;
  for (const GraphSpec& graph : manifest.graphs) {
    names.push_back(graph.name);
    prefills += graph.kind == GraphKind::prefill;
    extends += graph.kind == GraphKind::extend;
    if (times(times(4, graph.tokens), manifest.outputs) > kMostBytes)
      misfit(text("graph '", graph.name, "' returns more than ", kMostBytes, " bytes"));
    for (const TensorSpec& tensor : graph.outputs) {
      if (tensor.name != "surprise" || tensor.shape.empty()) continue;
      if (manifest.surprise_layers && manifest.surprise_layers != tensor.shape.back())
        misfit("graphs report surprise for different numbers of memory layers");
      manifest.surprise_layers = tensor.shape.back();
    }
  }
  unique("graph name", names);
  if (prefills > 1 || extends > 1) misfit("there is more than one prefill or extend graph");
  if (!manifest.graph(GraphKind::step)) misfit("graphs has no step graph, without which no stream can be driven");
  if (manifest.surprise_layers < 0) misfit("surprise has no number of memory layers");
  for (const GraphSpec& graph : manifest.graphs) check_graph(manifest, graph);
  check_schedule(manifest);
  for (const std::vector<std::int64_t>& ids : {manifest.eos, manifest.stop})
    for (const std::int64_t id : ids)
      if (manifest.vectors || id >= manifest.outputs)
        misfit(text("id ", id, " ends a text, and is outside the vocabulary"));
}

}  // namespace titans
