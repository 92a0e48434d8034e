// A safetensors file in memory: names to windows onto its bytes. Distrusts the file: tensors that overlap, leave holes,
// appear twice or lie outside of it are refused. Does not know what the tensors are for.
#pragma once
#include <map>
#include <string>

#include "json.h"
#include "types.h"

namespace titans {

inline constexpr std::size_t kMostHeaderBytes = 16 << 20;  // far above any of ours

struct Tensor {
  const ElementType* type = nullptr;
  Sizes shape;
  const std::uint8_t* data = nullptr;
  std::int64_t bytes = 0;
  std::int64_t offset = 0;  // of its bytes in the file
};

using Tensors = std::map<std::string, Tensor, std::less<>>;

struct TensorFile {
  Tensors tensors;
  std::string head;  // the header as it is spelt
  Json header;
};

// Throws `std::invalid_argument` with what is wrong with the file.
TensorFile read_tensors(std::span<const std::uint8_t> data);

}  // namespace titans
