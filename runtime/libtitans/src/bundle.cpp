#include "bundle.h"

#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <future>
#include <stdexcept>

#include "error.h"
#include "numbers.h"
#include "sha256.h"

namespace titans {
namespace {

constexpr std::int64_t kMostManifest = 4 * kMiB, kMostGraph = 32 * kMiB;

std::vector<std::uint8_t> read_file(const std::string& path, std::int64_t limit) {
  try {
    return read_all(open_regular(path), limit);
  } catch (const FileProblem& found) {
    if (found.missing) bundle_error(text(path, " is missing"));
    bundle_error(text(path, " cannot be read (", found.reason, ")"), found.remedy);
  }
}

void check_size(const std::string& path, const DataFile& file, std::int64_t size) {
  if (file.bytes >= 0 && size != file.bytes)
    bundle_error(text(path, " has ", size, " bytes, the manifest says ", file.bytes));
}

void check_digest(const std::string& path, const DataFile& file, const std::string& digest) {
  if (digest != file.sha256)
    bundle_error(text(path, " is not the file that was exported (sha256 ", digest.substr(0, 12), "..., expected ",
                      file.sha256.substr(0, 12), "...)"));
}

std::vector<std::uint8_t> read_checked(const std::string& folder, const DataFile& file, std::int64_t limit) {
  const std::string path = text(folder, "/", file.file);
  std::vector<std::uint8_t> data = read_file(path, limit);
  check_size(path, file, static_cast<std::int64_t>(data.size()));
  check_digest(path, file, sha256_hex(data.data(), data.size()));
  return data;
}

TensorFile tensors_of(std::span<const std::uint8_t> data, const std::string& name) {
  try {
    return read_tensors(data);
  } catch (const std::invalid_argument& error) {
    bundle_error(text(name, " is not a sound safetensors file (", error.what(), ")"), "copy the bundle again");
  }
}

Mapping map_weights(const std::string& folder, const DataFile& file) {
  const std::string path = text(folder, "/", file.file);
  try {
    Mapping mapping(open_regular(path));
    check_size(path, file, static_cast<std::int64_t>(mapping.size()));
    return mapping;
  } catch (const FileProblem& found) {
    if (found.missing) bundle_error(text(path, " is missing"));
    bundle_error(text(path, " cannot be read (", found.reason, ")"), found.remedy);
  }
}

// Where the streams begin that do not begin with zeros.
void read_initial(Bundle& bundle) {
  const Manifest& manifest = bundle.manifest;
  std::vector<std::uint8_t> content;
  TensorFile learned;
  if (manifest.initial_state && !manifest.left_out(manifest.initial_state->file)) {
    content = read_checked(bundle.path, *manifest.initial_state,
                           manifest.stream_bytes + static_cast<std::int64_t>(kMostHeaderBytes));
    learned = tensors_of(content, manifest.initial_state->file);
  }
  for (const StateSpec& state : manifest.states) {
    if (state.initial == InitialKind::zeros) continue;
    std::vector<std::uint8_t> value(static_cast<std::size_t>(state.type->bytes));
    if (state.initial == InitialKind::constant) {
      if (!fill(value, *state.type, state.value))
        bundle_error(
            text("state '", state.name, "' starts from ", repr(state.value), ", which is no ", state.type->name));
    } else {
      const auto found = learned.tensors.find(state.tensor);
      if (found == learned.tensors.end())
        bundle_error(text("the initial state file has no tensor '", state.tensor, "' for state '", state.name, "'"));
      Sizes shape;
      for (const std::int64_t size : state.shape)
        if (size != kBatch) shape.push_back(size);
      if (found->second.type != state.type || found->second.shape != shape)
        bundle_error(
            text("initial tensor '", state.tensor, "' has another type or shape than state '", state.name, "'"));
      value.assign(found->second.data, found->second.data + found->second.bytes);
    }
    if (!state.rows) bundle.initial.emplace(state.name, std::move(value));
  }
}

void read_graphs(Bundle& bundle, bool cpu, bool fused) {
  const Manifest& manifest = bundle.manifest;
  for (const GraphSpec& graph : manifest.graphs) {
    GraphFile made;
    made.fused = fused && graph.fused && !manifest.left_out(graph.fused->file);
    const DataFile& file = made.fused ? *graph.fused : cpu && graph.cpu ? *graph.cpu : graph.file;
    if (manifest.left_out(file.file))
      bundle_error(text(bundle.path, "/", file.file, " was left out of this bundle by `titans slim`"),
                   "use the bundle it was made from");
    made.file = file.file;
    made.content = read_checked(bundle.path, file, kMostGraph);
    const Interface wanted{
        text(bundle.path, "/", file.file),           graph.inputs, graph.outputs, bundle.weights, manifest.weights.file,
        &file == (graph.cpu ? &*graph.cpu : nullptr)};
    made.checked = check_graph(made.content, wanted);
    bundle.graphs.push_back(std::move(made));
  }
}

std::int64_t available_memory() {
  std::int64_t there = INT64_MAX;
  if (std::FILE* file = std::fopen("/proc/meminfo", "r")) {
    char line[256];
    long long kilobytes = 0;
    while (std::fgets(line, sizeof line, file))
      if (std::sscanf(line, "MemAvailable: %lld", &kilobytes) == 1) there = kilobytes * 1024;
    std::fclose(file);
  }
  if (std::FILE* file = std::fopen("/sys/fs/cgroup/memory.max", "r")) {
    long long most = 0;
    if (std::fscanf(file, "%lld", &most) == 1) there = std::min<std::int64_t>(there, most);
    std::fclose(file);
  }
  struct rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
    there = std::min<std::int64_t>(there, static_cast<std::int64_t>(limit.rlim_cur));
  return there;
}

}  // namespace

void check_memory(std::int64_t bytes, const std::string& what) {
  if (bytes > available_memory())
    throw Error(TITANS_MEMORY, text(bytes / kMiB, " MiB of memory are needed for ", what, ", and are not there"),
                "free some memory, or use a larger machine");
}

bool Bundle::weights_in_place() const {
  struct stat now{};
  const std::string name = text(path, "/", manifest.weights.file);
  if (::stat(name.c_str(), &now) != 0) return false;
  const struct stat& known = weight_file.identity();
  if (now.st_dev != known.st_dev || now.st_ino != known.st_ino) return false;
  if (now.st_size != known.st_size || now.st_mtim.tv_sec != known.st_mtim.tv_sec ||
      now.st_mtim.tv_nsec != known.st_mtim.tv_nsec)
    bundle_error(text(name, " was changed while it was loaded"), "load the bundle again");
  return true;
}

Bundle open_bundle(const std::string& path, bool cpu, bool fused) {
  Bundle bundle;
  bundle.path = path;
  struct stat found{};
  if (::stat(path.c_str(), &found) != 0 || !S_ISDIR(found.st_mode))
    bundle_error(text(path, " is not a bundle directory"), "give the directory that `titans export` wrote");
  const std::vector<std::uint8_t> document = read_file(path + "/manifest.json", kMostManifest);
  bundle.manifest = read_manifest({reinterpret_cast<const char*>(document.data()), document.size()});
  const Manifest& manifest = bundle.manifest;
  check_memory(manifest.stream_bytes, "the state of a stream");
  if (manifest.left_out(manifest.weights.file))
    bundle_error(text(manifest.weights.file, " was left out of this bundle by `titans slim`"),
                 "use the bundle it was made from");
  bundle.weight_file = map_weights(path, manifest.weights);
  const std::span<const std::uint8_t> data(bundle.weight_file.data(), bundle.weight_file.size());
  // Hashed where they are mapped, beside whatever else there is to do.
  std::future<std::string> digest =
      std::async(std::launch::async | std::launch::deferred, [data] { return sha256_hex(data.data(), data.size()); });
  const auto check_weights = [&] {
    check_digest(text(path, "/", manifest.weights.file), manifest.weights, digest.get());
  };
  try {
    bundle.weights = tensors_of(data, manifest.weights.file).tensors;
    read_initial(bundle);
    read_graphs(bundle, cpu, fused);
  } catch (const Error&) {
    check_weights();  // what it says of a damaged file is more to the point
    throw;
  }
  check_weights();
  return bundle;
}

}  // namespace titans
