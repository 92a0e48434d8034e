// A bundle directory, opened: its manifest read, and every file that is used present, hashed and held against it. The
// bytes that were hashed are the bytes that run. Does not know how a graph is run.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "files.h"
#include "graph_check.h"
#include "manifest.h"
#include "tensor_file.h"

namespace titans {

struct GraphFile {
  std::string file;
  bool fused = false;
  std::vector<std::uint8_t> content;
  CheckedGraph checked;
};

struct Bundle {
  std::string path;
  Manifest manifest;
  Mapping weight_file;
  Tensors weights;
  std::vector<GraphFile> graphs;  // one for each graph of the manifest
  // Where carried states begin that do not begin with zeros: one stream's tensor, or one number for all of it.
  std::map<std::string, std::vector<std::uint8_t>> initial;

  // Whether the weight file still has its name. Throws `Error` if its bytes were changed since they were hashed.
  bool weights_in_place() const;
};

// `cpu`: take the twins for CPUs; `fused`: those with fused operators. Throws `Error`.
Bundle open_bundle(const std::string& path, bool cpu, bool fused);

// Throws `Error` of TITANS_MEMORY unless so many bytes can be had.
void check_memory(std::int64_t bytes, const std::string& what);

}  // namespace titans
