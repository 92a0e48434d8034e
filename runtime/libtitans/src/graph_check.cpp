#include "graph_check.h"

#include <algorithm>
#include <set>
#include <stdexcept>
#include <unordered_map>

#include "error.h"
#include "onnx_reader.h"

namespace titans {
namespace {

constexpr std::int64_t kIrVersion = 10;
constexpr std::size_t kMostNodes = 100'000;  // the largest bundle that we write has 8,000 in a graph

enum class Returns { bool_, int64, float32, to, first, second };  // the type of an operator's outputs; of an input's

struct Operator {
  std::string_view domain, name;
  Returns returns;
  std::string_view attributes;  // name:kind, each followed by a space; kinds are i, f, s and l
};

// Written from `titans_runtime.graphs.operators`; a test holds the two together.
constexpr Operator kOperators[] = {
#include "operators.inc"
};

struct Opset {
  std::string_view domain;
  std::int64_t version;
};
constexpr Opset kOpsets[] = {{"", 20}, {"ai.titans", 1}, {"com.microsoft", 1}};

class Check {
 public:
  Check(std::span<const std::uint8_t> content, const Interface& wanted) : wanted_(wanted) {
    try {
      model_ = read_model(content);
    } catch (const std::invalid_argument& error) {
      fail(text("cannot be read (", error.what(), ")"));
    }
  }

  CheckedGraph run() {
    versions();
    inputs();
    for (const OnnxTensor& tensor : model_.initializers)
      if (initializer(tensor)) checked_.weights.push_back(tensor.name);
    if (model_.nodes.size() > kMostNodes) fail(text("has more than ", kMostNodes, " nodes"));
    for (const OnnxNode& each : model_.nodes) node(each);
    outputs();
    return std::move(checked_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    bundle_error(text(wanted_.source, " ", what), "it is not as our exporter writes it: export the bundle again");
  }

  void versions() const {
    if (model_.ir_version < 1 || model_.ir_version > kIrVersion)
      fail(text("has format version ", model_.ir_version, ", not ", kIrVersion));
    for (const auto& [domain, version] : model_.opsets) {
      const auto known =
          std::find_if(std::begin(kOpsets), std::end(kOpsets), [&d = domain](auto& o) { return o.domain == d; });
      if (known == std::end(kOpsets) || known->version != version)
        fail(text("uses version ", version, " of domain '", domain, "'"));
    }
    if (!model_.opsets.count("")) fail("does not say which version of ONNX's operators it uses");
  }

  void inputs() {
    std::map<std::string_view, const TensorSpec*> specs;
    for (const TensorSpec& spec : wanted_.inputs) specs.emplace(spec.name, &spec);
    for (const OnnxValue& value : model_.inputs) {
      if (types_.count(value.name)) fail(text("has input '", value.name, "' twice"));
      if (const auto weight = wanted_.weights.find(value.name); weight != wanted_.weights.end()) {
        const int stored = weight->second.type->onnx;
        if (!wanted_.widened || specs.count(value.name) || (stored != kFloat16 && stored != kBfloat16) ||
            value.type != kFloat32 || value.shape != weight->second.shape)
          fail(text("has an input '", value.name, "', which is the name of a weight of another kind"));
        checked_.widened.push_back(value.name);
      } else if (const auto spec = specs.find(value.name); spec != specs.end()) {
        agree("input", value, *spec->second);
        specs.erase(spec);
      } else {
        fail(text("has an input '", value.name, "' that the manifest does not list"));
      }
      types_.emplace(value.name, value.type);
    }
    if (!specs.empty()) fail(text("has no input '", specs.begin()->first, "', which the manifest lists"));
  }

  void outputs() const {
    std::map<std::string_view, const TensorSpec*> specs;
    for (const TensorSpec& spec : wanted_.outputs) specs.emplace(spec.name, &spec);
    for (const OnnxValue& value : model_.outputs) {
      const auto spec = specs.find(value.name);
      if (spec == specs.end())
        fail(text("has an output '", value.name, "' that the manifest does not list, or has it twice"));
      agree("output", value, *spec->second);
      const auto found = types_.find(value.name);
      if (found == types_.end() || found->second != value.type)
        fail(text("says that output '", value.name, "' is of one type, and computes another"));
      specs.erase(spec);
    }
    if (!specs.empty()) fail(text("has no output '", specs.begin()->first, "', which the manifest lists"));
  }

  void agree(const char* side, const OnnxValue& value, const TensorSpec& spec) const {
    bool same = value.type == spec.type->onnx && value.shape && value.shape->size() == spec.shape.size();
    for (std::size_t i = 0; same && i < spec.shape.size(); ++i) {
      const std::int64_t found = (*value.shape)[i];
      same = spec.shape[i] == kBatch ? found == kNamedSize || found == kUnknownSize : found == spec.shape[i];
    }
    if (!same) fail(text("has ", side, " '", value.name, "' of another type or shape than the manifest says"));
  }

  // Checks one, and says whether it is a weight.
  bool initializer(const OnnxTensor& tensor) {
    if (tensor.name.empty() || types_.count(tensor.name))
      fail(text("has initializer '", tensor.name, "' twice, or under the name of an input"));
    if (!by_onnx(tensor.type) || tensor.dims.size() > kMostAxes)
      fail(text("has initializer '", tensor.name, "' of a type or shape that no weight has"));
    types_.emplace(tensor.name, tensor.type);
    sizes_.emplace(tensor.name, tensor.dims);
    if (tensor.is_external) {
      weight(tensor);
      return true;
    }
    if (wanted_.weights.count(tensor.name))
      fail(text("has initializer '", tensor.name, "', which is the name of a weight, with data of its own"));
    constant(tensor);
    constants_.emplace(tensor.name, &tensor);
    return false;
  }

  // A reference into the weight file, to exactly one tensor of it.
  void weight(const OnnxTensor& tensor) const {
    const auto found = wanted_.weights.find(tensor.name);
    if (found == wanted_.weights.end())
      fail(text("has initializer '", tensor.name, "', and ", wanted_.weight_file, " has no such tensor"));
    const Tensor& stored = found->second;
    if (tensor.type != stored.type->onnx || tensor.dims != stored.shape)
      fail(text("has initializer '", tensor.name, "' of another type or shape than in ", wanted_.weight_file));
    const std::map<std::string, std::string> place{{"location", wanted_.weight_file},
                                                   {"offset", std::to_string(stored.offset)},
                                                   {"length", std::to_string(stored.bytes)}};
    if (tensor.external != place)
      fail(text("has initializer '", tensor.name, "' at another place than ", wanted_.weight_file, " has it"));
  }

  // Data in the graph itself, as much of it as the shape says.
  void constant(const OnnxTensor& tensor) const {
    std::int64_t count = 1;
    for (const std::int64_t size : tensor.dims) count = size < 0 ? kTooMany : times(count, size);
    if (std::find(tensor.dims.begin(), tensor.dims.end(), 0) != tensor.dims.end()) count = 0;
    const auto held = static_cast<std::int64_t>(tensor.has_raw ? tensor.raw.size() : tensor.numbers.size());
    const bool fits =
        tensor.has_raw ? held == times(count, by_onnx(tensor.type)->bytes) : tensor.type == kInt64 && held == count;
    if (!fits || std::any_of(tensor.dims.begin(), tensor.dims.end(), [](auto size) { return size < 0; }))
      fail(text("has initializer '", tensor.name, "' with another amount of data than its shape says"));
  }

  void node(const OnnxNode& node) {
    const auto known = std::find_if(std::begin(kOperators), std::end(kOperators),
                                    [&node](auto& each) { return each.name == node.op && each.domain == node.domain; });
    if (known == std::end(kOperators) || !model_.opsets.count(node.domain))
      fail(text("uses operator '", node.op, "' of domain '", node.domain, "', which is not one of ours"));
    for (const auto& [name, value] : node.attributes) {
      static constexpr char kKinds[] = {'i', 'f', 's', 'l'};
      const std::string entry = text(" ", name, ":", std::string(1, kKinds[value.index()]), " ");
      if (name.find_first_of(" :") != std::string::npos || known->attributes.find(entry) == std::string_view::npos)
        fail(text("has attribute '", name, "' at operator '", node.op, "', which is not one of ours"));
    }
    std::vector<std::int64_t> types;
    for (const std::string& name : node.inputs) types.push_back(type_of(node, name));
    const bool divides = node.domain.empty() && (node.op == "Div" || node.op == "Mod");
    if (divides && !types.empty() && is_integer(types[0])) divisor(node);
    if (node.op == "MatMulNBits") packed(node, types);
    if (node.op == "Cast" && !node.inputs.empty())
      if (const auto found = sizes_.find(node.inputs[0]); found != sizes_.end()) {
        const Sizes sizes = found->second;
        for (const std::string& name : node.outputs) sizes_[name] = sizes;
      }
    const std::int64_t type = returned(node, known->returns, types);
    for (const std::string& name : node.outputs)
      if (name.empty() || !types_.emplace(name, type).second)
        fail(text("computes '", name, "' twice, or without a name"));
  }

  std::int64_t returned(const OnnxNode& node, Returns returns, const std::vector<std::int64_t>& types) const {
    switch (returns) {
      case Returns::bool_: return kBool;
      case Returns::int64: return kInt64;
      case Returns::float32: return kFloat32;
      case Returns::to: {
        const auto to = node.attributes.find("to");
        const std::int64_t type = to == node.attributes.end() ? 0 : std::get<std::int64_t>(to->second);
        if (!by_onnx(type)) fail(text("casts to type ", type, ", which no value of ours has"));
        return type;
      }
      case Returns::first:
      case Returns::second: break;
    }
    const std::size_t index = returns == Returns::first ? 0 : 1;
    if (types.size() <= index) fail(text("has operator '", node.op, "' with too few inputs"));
    return types[index];
  }

  // The type of an input; an input that is left out has none.
  std::int64_t type_of(const OnnxNode& node, const std::string& name) const {
    if (name.empty()) return 0;
    const auto found = types_.find(name);
    if (found == types_.end())
      fail(text("has operator '", node.op, "' read '", name, "', which nothing before it computes"));
    return found->second;
  }

  static bool is_integer(std::int64_t type) {
    return type == kInt8 || type == kUint8 || type == kInt32 || type == kInt64;
  }

  // Whole numbers are divided by positive constants alone: others can end the process.
  void divisor(const OnnxNode& node) const {
    const auto found = node.inputs.size() == 2 ? constants_.find(node.inputs[1]) : constants_.end();
    bool positive = found != constants_.end();
    if (positive && !found->second->has_raw) {
      for (const std::int64_t number : found->second->numbers) positive = positive && number >= 1;
    } else if (positive) {
      const OnnxTensor& tensor = *found->second;
      const auto size = static_cast<std::size_t>(by_onnx(tensor.type)->bytes);
      for (std::size_t at = 0; at + size <= tensor.raw.size(); at += size) {
        std::uint64_t number = 0;
        for (std::size_t i = size; i-- > 0;) number = number << 8 | tensor.raw[at + i];
        const bool negative = tensor.type != kUint8 && (tensor.raw[at + size - 1] & 0x80);
        positive = positive && number != 0 && !negative;
      }
    }
    if (!positive) fail("divides whole numbers by something else than a positive constant");
  }

  // A product with packed integers: ONNX Runtime packs them anew as its attributes say, whatever their sizes.
  void packed(const OnnxNode& node, const std::vector<std::int64_t>& types) const {
    const auto number = [&node](const char* name) {
      const auto found = node.attributes.find(name);
      return found == node.attributes.end() ? std::int64_t{0} : std::get<std::int64_t>(found->second);
    };
    const std::int64_t width = number("K"), count = number("N"), bits = number("bits"), block = number("block_size");
    if (width < 1 || count < 1 || (bits != 4 && bits != 8) || (block != 16 && block != 32 && block != 64) ||
        node.inputs.size() != 3)
      fail("multiplies with packed integers of sizes that are not ours");
    const std::int64_t blocks = (width - 1) / block + 1;
    const auto codes = sizes_.find(node.inputs[1]), scales = sizes_.find(node.inputs[2]);
    const bool fits = codes != sizes_.end() && types[1] == kUint8 &&
                      codes->second == Sizes{count, blocks, block * bits / 8} && scales != sizes_.end() &&
                      types[2] == kFloat32 &&
                      (scales->second == Sizes{count, blocks} || scales->second == Sizes{times(count, blocks)});
    if (!fits) fail("has packed integers, or scales of them, of other sizes than its attributes say");
  }

  const Interface& wanted_;
  OnnxModel model_;
  CheckedGraph checked_;
  std::unordered_map<std::string, std::int64_t> types_;  // of all values that are known so far
  std::unordered_map<std::string, const OnnxTensor*> constants_;
  std::unordered_map<std::string, Sizes> sizes_;  // of initializers, and of what is cast from them
};

}  // namespace

CheckedGraph check_graph(std::span<const std::uint8_t> content, const Interface& wanted) {
  return Check(content, wanted).run();
}

}  // namespace titans
