// What a bundle says about itself, as far as a driver of token ids or vectors needs it. Fields, ranges and the way they
// fit together are those of `titans_format`. Does not open the files.
#pragma once
#include <optional>
#include <string>

#include "json.h"
#include "types.h"

namespace titans {

struct DataFile {
  std::string file, sha256;
  std::int64_t bytes = -1;  // where only the hash is recorded
};

struct TensorSpec {
  std::string name;
  const ElementType* type = nullptr;
  Sizes shape;
};

enum class InitialKind { zeros, constant, learned };

struct StateSpec {
  std::string name;
  bool rows = false;  // else carried
  const ElementType* type = nullptr;
  Sizes shape;
  InitialKind initial = InitialKind::zeros;
  double value = 0;
  bool value_said = false;
  std::string tensor;  // of a learned one
  std::string input, output;

  std::int64_t bytes() const { return times(elements(shape), type->bytes); }  // of one stream
  std::int64_t period() const { return shape[0]; }                            // of rows
};

enum class GraphKind { prefill, extend, step, commit };

struct GraphSpec {
  std::string name;
  GraphKind kind = GraphKind::step;
  DataFile file;
  std::int64_t tokens = 0;
  std::vector<TensorSpec> inputs, outputs;
  std::optional<DataFile> cpu, fused;
};

struct Due {
  std::size_t graph = 0;  // its place among the graphs
  std::int64_t period = 1, phase = 0;
};

struct Manifest {
  std::string name, variant, dtype;
  bool vectors = false;  // else tokens
  std::int64_t features = 0, outputs = 0, chunk = 1;
  std::vector<StateSpec> states;
  std::vector<GraphSpec> graphs;
  std::vector<Due> schedule;
  DataFile weights;
  std::optional<DataFile> initial_state;
  std::vector<std::string> providers, omitted;  // no providers: all
  std::vector<std::int64_t> eos, stop;
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<std::int64_t> top_k, max_new_tokens;
  std::int64_t surprise_layers = 0, stream_bytes = 0;
  std::string state_identity;  // a SHA-256 of what a saved state depends on

  const GraphSpec* graph(GraphKind kind) const;  // the first of a kind
  const std::string& data_name() const;
  const std::string& head_name() const;
  bool left_out(const std::string& file) const;
};

// Reads and checks a manifest. Throws `Error`.
Manifest read_manifest(std::string_view document);

// Checks that its parts fit together, and fills in `surprise_layers`. Throws `Error`.
void check_contract(Manifest& manifest);

}  // namespace titans
