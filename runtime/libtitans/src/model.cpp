#include "model.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "error.h"
#include "numbers.h"

namespace titans {
namespace {

constexpr const char* kFolder = "session.model_external_initializers_file_folder_path";

// The library's own name for a provider that it has. Throws `Error`.
std::string name_of_provider(const Ort& ort, const Manifest& manifest, const std::string& provider) {
  const auto same_name = [](const std::string& a, const std::string& b) {
    const auto same = [](char x, char y) { return std::tolower(x) == std::tolower(y); };
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), same);
  };
  if (!manifest.providers.empty() && std::none_of(manifest.providers.begin(), manifest.providers.end(),
                                                  [&](auto& each) { return same_name(each, provider); }))
    throw Error(TITANS_PROVIDER, text("this bundle is not for provider '", provider, "'"),
                "export the checkpoint with another --dtype");
  if (provider == "cpu") return provider;
  std::string known;
  for (const std::string& each : ort.providers()) {
    const std::string name = each.substr(0, each.find("ExecutionProvider"));
    if (same_name(name, provider)) return each;
    known += (known.empty() ? "" : ", ") + (name == "CPU" ? "cpu" : name);
  }
  throw Error(TITANS_PROVIDER, text("ONNX Runtime ", ort.version(), " has no provider '", provider, "'"),
              text("use one of ", known, ", or open a library that has it"));
}

}  // namespace

Model::Model(const std::string& path, const char* onnxruntime, const char* kernels, const std::string& provider,
             int threads)
    : ort_(Ort::open(onnxruntime)),
      bundle_(open_bundle(path, provider == "cpu", provider == "cpu" && kernels)),
      planner_(bundle_.manifest),
      kernels_(kernels ? kernels : ""),
      provider_(provider),
      threads_(threads),
      programs_(bundle_.manifest.graphs.size()) {
  provider_ = name_of_provider(ort_, manifest(), provider);
  options();  // now: a stream must not meet a refusal half way
  for (const GraphFile& graph : bundle_.graphs) fused_ = fused_ || graph.fused;
  wrap_weights();
  make_groups();
}

void Model::wrap_weights() {
  try {
    for (const auto& [name, tensor] : bundle_.weights) {
      void* data = const_cast<std::uint8_t*>(tensor.data);
      const auto bytes = static_cast<std::size_t>(tensor.bytes);
      weights_.emplace(name, Owned<OrtValue>(ort_, ort_.tensor(*tensor.type, tensor.shape, data, bytes)));
    }
    for (const GraphFile& graph : bundle_.graphs)
      for (const std::string& name : graph.checked.widened) {
        if (wide_.count(name)) continue;
        const Tensor& tensor = bundle_.weights.find(name)->second;
        Wide& wide = wide_[name];
        wide.numbers.resize(static_cast<std::size_t>(tensor.bytes) / 2);
        for (std::size_t i = 0; i < wide.numbers.size(); ++i) {
          std::uint16_t half;
          std::memcpy(&half, tensor.data + 2 * i, sizeof half);
          const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;  // a bfloat16 is the upper half
          if (tensor.type->onnx == kBfloat16)
            std::memcpy(&wide.numbers[i], &bits, sizeof bits);
          else
            wide.numbers[i] = float_of_half(half);
        }
        wide.value = {ort_,
                      ort_.tensor(*by_onnx(kFloat32), tensor.shape, wide.numbers.data(), 4 * wide.numbers.size())};
      }
  } catch (const std::runtime_error& error) {
    bundle_error(text("ONNX Runtime ", ort_.version(), " does not take the weights (", error.what(), ")"),
                 "upgrade ONNX Runtime");
  }
}

void Model::make_groups() {
  const Manifest& manifest = this->manifest();
  std::map<std::string, std::size_t> known;
  for (const bool rows : {false, true})
    for (std::size_t i = 0; i < manifest.states.size(); ++i) {
      const StateSpec& state = manifest.states[i];
      if (state.rows != rows) continue;
      std::string key = rows ? text("rows ", state.period()) : "carried";
      for (const GraphSpec& graph : manifest.graphs)
        for (const TensorSpec& tensor : graph.outputs)
          if (!rows && tensor.name == state.output) key += "/" + graph.name;
      const auto [found, fresh] = known.emplace(key, groups_.size());
      if (fresh) groups_.push_back({{}, 0, rows ? state.period() : 0, rows});
      Group& group = groups_[found->second];
      const auto bytes = static_cast<std::size_t>(state.bytes());
      group.slots.push_back({i, group.bytes, bytes});
      group.bytes += aligned(bytes);
    }
}

OrtSession* Model::program(std::size_t graph) {
  const std::lock_guard lock(loading_);
  if (!programs_[graph]) programs_[graph] = create(graph);
  return programs_[graph].get();
}

Owned<OrtOptions> Model::options() const {
  try {
    return ort_.options(threads_, provider_);
  } catch (const std::runtime_error& error) {
    throw Error(TITANS_PROVIDER, text("provider '", provider_, "' does not work here (", error.what(), ")"),
                "use provider \"cpu\", or install what it needs");
  }
}

Owned<OrtSession> Model::create(std::size_t graph) const {
  const GraphFile& file = bundle_.graphs[graph];
  const std::string what = text(bundle_.path, "/", file.file);
  Owned<OrtOptions> options = this->options();
  try {
    if (file.fused) ort_.kernels(options.get(), kernels_.c_str());
  } catch (const std::runtime_error& error) {
    throw Error(TITANS_PROVIDER, text(kernels_, " is not a library of fused kernels (", error.what(), ")"),
                "name the titans_kernels.so of this version, or none");
  }
  try {
    for (const std::string& name : file.checked.weights)
      ort_.initializer(options.get(), name.c_str(), weight(name, false));
    ort_.entry(options.get(), kFolder, bundle_.path.c_str());
    if (bundle_.weights_in_place()) {
      Owned<OrtSession> session(ort_, ort_.session(options.get(), file.content));
      if (bundle_.weights_in_place()) return session;  // so they were, all the time
    }
    ort_.external_file(options.get(), manifest().weights.file.c_str(), bundle_.weight_file.data(),
                       bundle_.weight_file.size());
    return {ort_, ort_.session(options.get(), file.content)};
  } catch (const std::runtime_error& error) {
    bundle_error(text(what, " cannot be loaded by ONNX Runtime ", ort_.version(), " (", error.what(), ")"),
                 "upgrade ONNX Runtime, or export the bundle again");
  }
}

const OrtValue* Model::weight(const std::string& name, bool widened) const {
  return widened ? wide_.find(name)->second.value.get() : weights_.find(name)->second.get();
}

}  // namespace titans
