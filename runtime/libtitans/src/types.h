// Element types, and sizes that do not overflow.
#pragma once
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace titans {

using Sizes = std::vector<std::int64_t>;
inline constexpr std::int64_t kBatch = -1;                           // the symbolic size of a shape
inline constexpr std::int64_t kTooMany = INT64_MAX;                  // what a product that overflows gives
inline constexpr std::int64_t kMostInteger = std::int64_t{1} << 62;  // anything counted; more is damage
inline constexpr std::size_t kMostAxes = 16;                         // of a tensor; ours have up to 5

struct ElementType {
  std::string_view name;         // as a manifest spells it
  std::int64_t bytes;            // of an element
  int onnx;                      // `onnx.TensorProto.DataType`, and ONNX Runtime's number too
  std::string_view safetensors;  // in the header of a safetensors file
};

inline constexpr ElementType kElementTypes[] = {
    {"float32", 4, 1, "F32"},  {"uint8", 1, 2, "U8"},     {"int8", 1, 3, "I8"},
    {"int32", 4, 6, "I32"},    {"int64", 8, 7, "I64"},    {"bool", 1, 9, "BOOL"},
    {"float16", 2, 10, "F16"}, {"float64", 8, 11, "F64"}, {"bfloat16", 2, 16, "BF16"},
};
inline constexpr int kFloat32 = 1, kUint8 = 2, kInt8 = 3, kInt32 = 6, kInt64 = 7, kBool = 9, kFloat16 = 10,
                     kFloat64 = 11, kBfloat16 = 16;

inline const ElementType* by_name(std::string_view name) {
  for (const ElementType& type : kElementTypes)
    if (type.name == name) return &type;
  return nullptr;
}
inline const ElementType* by_safetensors(std::string_view name) {
  for (const ElementType& type : kElementTypes)
    if (type.safetensors == name) return &type;
  return nullptr;
}
inline const ElementType* by_onnx(std::int64_t number) {
  for (const ElementType& type : kElementTypes)
    if (type.onnx == number) return &type;
  return nullptr;
}

inline std::int64_t times(std::int64_t a, std::int64_t b) {
  std::int64_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? kTooMany : product;
}

// The number of elements of one stream's tensor.
inline std::int64_t elements(std::span<const std::int64_t> shape) {
  std::int64_t count = 1;
  for (const std::int64_t size : shape)
    if (size == 0) return 0;
  for (const std::int64_t size : shape) count = times(count, size == kBatch ? 1 : size);
  return count;
}

// The shape for one stream.
inline Sizes concrete(const Sizes& shape) {
  Sizes found = shape;
  for (std::int64_t& size : found)
    if (size == kBatch) size = 1;
  return found;
}

}  // namespace titans
