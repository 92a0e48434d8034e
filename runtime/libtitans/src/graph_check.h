// A graph held against the manifest and the weights, before ONNX Runtime sees it.
//
// Hashes say that a file is the one that its maker wrote, not that its maker meant well. ONNX Runtime takes a graph at
// its word where it is given weights: a tensor of another type than the graph says is read beyond its end. So every
// initializer is compared with the weight file, every input and output with the manifest, and every node with the
// operators that our exporter writes.
#pragma once
#include "manifest.h"
#include "tensor_file.h"

namespace titans {

struct Interface {
  std::string source;  // what to call the graph in errors
  const std::vector<TensorSpec>& inputs;
  const std::vector<TensorSpec>& outputs;
  const Tensors& weights;
  const std::string& weight_file;
  bool widened = false;  // a twin for CPUs, which takes half-precision weights as float32 inputs
};

struct CheckedGraph {
  std::vector<std::string> weights;  // that it reads in place
  std::vector<std::string> widened;  // that it takes as inputs
};

// Throws `Error`.
CheckedGraph check_graph(std::span<const std::uint8_t> content, const Interface& wanted);

}  // namespace titans
