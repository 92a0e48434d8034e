// An ONNX model as plain data, read without trust: every field that our exporter never writes is refused, so nothing
// that this reader does not know can reach ONNX Runtime. Nothing is recursive. Does not know what a graph may say.
#pragma once
#include <map>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "types.h"

namespace titans {

using Attribute = std::variant<std::int64_t, float, std::string, std::vector<std::int64_t>>;

struct OnnxNode {
  std::string op, domain;
  std::vector<std::string> inputs, outputs;
  std::map<std::string, Attribute> attributes;
};

struct OnnxTensor {
  std::string name;
  std::int64_t type = 0;
  Sizes dims;
  bool has_raw = false;
  std::span<const std::uint8_t> raw;
  std::vector<std::int64_t> numbers;  // the data of an int64 tensor without `raw`
  bool is_external = false;
  std::map<std::string, std::string> external;
};

inline constexpr std::int64_t kNamedSize = -2, kUnknownSize = -3;  // of an OnnxValue

struct OnnxValue {
  std::string name;
  std::int64_t type = 0;
  std::optional<Sizes> shape;
};

struct OnnxModel {
  std::int64_t ir_version = 0;
  std::map<std::string, std::int64_t> opsets;
  std::vector<OnnxNode> nodes;
  std::vector<OnnxTensor> initializers;
  std::vector<OnnxValue> inputs, outputs;
};

// Throws `std::invalid_argument` with what is wrong with it.
OnnxModel read_model(std::span<const std::uint8_t> data);

}  // namespace titans
