// A loaded bundle: weights, graphs and the places of state tensors that all its sessions share. Does not drive streams.
#pragma once
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "bundle.h"
#include "ort.h"
#include "plan.h"

namespace titans {

// A state tensor within a block of memory.
struct Slot {
  std::size_t state = 0;   // its place in the state table
  std::size_t offset = 0;  // bytes
  std::size_t bytes = 0;   // of one stream; of rows, of all of them
};

// Carried tensors that the same graphs write, or rows of equally long tables: they live in one block.
struct Group {
  std::vector<Slot> slots;
  std::size_t bytes = 0;
  std::int64_t length = 0;  // rows of a table
  bool rows = false;
};

inline constexpr std::size_t kAlignment = 64;  // bytes: a cache line, and the widest vector register
inline std::size_t aligned(std::size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

class Model {
 public:
  Model(const std::string& path, const char* onnxruntime, const char* kernels, const std::string& provider,
        int threads);

  const Bundle& bundle() const { return bundle_; }
  const Manifest& manifest() const { return bundle_.manifest; }
  const Ort& ort() const { return ort_; }
  const Planner& planner() const { return planner_; }
  const std::vector<Group>& groups() const { return groups_; }  // carried ones, then rows
  bool fused() const { return fused_; }

  // ONNX Runtime's session of a graph, created when it is first needed. Throws `Error`.
  OrtSession* program(std::size_t graph);
  // A weight as a tensor, in float32 where a graph takes it as an input.
  const OrtValue* weight(const std::string& name, bool widened) const;

 private:
  struct Wide {
    std::vector<float> numbers;
    Owned<OrtValue> value;
  };
  void wrap_weights();
  void make_groups();
  Owned<OrtOptions> options() const;  // throws `Error`
  Owned<OrtSession> create(std::size_t graph) const;

  const Ort& ort_;
  Bundle bundle_;
  Planner planner_;
  std::string kernels_, provider_;
  int threads_;
  bool fused_ = false;
  std::vector<Group> groups_;
  std::map<std::string, Owned<OrtValue>> weights_;
  std::map<std::string, Wide> wide_;
  std::mutex loading_;
  std::vector<Owned<OrtSession>> programs_;
};

}  // namespace titans
