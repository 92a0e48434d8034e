// Single numbers of every element type, and whether many of them are finite.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "types.h"

namespace titans {

// Whether no number has all the bits of its exponent set. The numbers may lie at any address.
template <class Bits>
bool none_has(const void* data, std::size_t count, Bits exponent) {
  const auto* bytes = static_cast<const unsigned char*>(data);
  Bits found = 0;
  for (std::size_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, bytes + i * sizeof bits, sizeof bits);
    found |= static_cast<Bits>((bits & exponent) == exponent);
  }
  return !found;
}

inline bool all_finite(const float* numbers, std::size_t count) {
  return none_has<std::uint32_t>(numbers, count, 0x7f800000u);
}

inline bool all_finite(const ElementType& type, const void* data, std::size_t bytes) {
  if (type.onnx == kFloat32) return none_has<std::uint32_t>(data, bytes / 4, 0x7f800000u);
  if (type.onnx == kFloat16) return none_has<std::uint16_t>(data, bytes / 2, 0x7c00);
  if (type.onnx == kFloat64) return none_has<std::uint64_t>(data, bytes / 8, 0x7ff0000000000000u);
  return true;
}

inline float float_of_half(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16, rest = half & 0x7fff;
  std::uint32_t bits;
  if (rest >= 0x7c00) {
    bits = sign | 0x7f800000u | (rest & 0x3ff) << 13;
  } else if (rest >= 0x400) {
    bits = sign | ((rest << 13) + 0x38000000u);
  } else {
    const float small = std::ldexp(static_cast<float>(rest), -24);
    std::memcpy(&bits, &small, sizeof bits);
    bits |= sign;
  }
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The nearest number in half precision, ties to even; infinite beyond its range.
inline std::uint16_t half_of(double value) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double size = std::fabs(value);
  if (size >= 65520.0) return sign | 0x7c00;
  if (size < std::ldexp(1.0, -14)) return sign | static_cast<std::uint16_t>(std::nearbyint(std::ldexp(size, 24)));
  int exponent = 0;
  const double fraction = std::frexp(size, &exponent);  // in [0.5, 1)
  const auto mantissa = static_cast<std::uint32_t>(std::nearbyint(std::ldexp(fraction, 11)));
  return sign | static_cast<std::uint16_t>((static_cast<std::uint32_t>(exponent + 14) << 10) + (mantissa - 1024));
}

// Fills a tensor with one number. False where its type cannot hold it to within a hundredth.
inline bool fill(std::vector<std::uint8_t>& tensor, const ElementType& type, double value) {
  double held = value;
  std::uint8_t bytes[8] = {};
  const auto store = [&bytes](auto number) { std::memcpy(bytes, &number, sizeof number); };
  const auto whole = [&](double least, double most, auto number) {
    if (!(value >= least && value <= most)) return false;
    number = static_cast<decltype(number)>(value);
    held = static_cast<double>(number);
    store(number);
    return true;
  };
  bool fits = true;
  switch (type.onnx) {
    case kFloat32:
      fits = std::fabs(value) <= 3.4028234663852886e38;
      if (fits) held = static_cast<float>(value);
      store(static_cast<float>(held));
      break;
    case kFloat64: store(value); break;
    case kFloat16:
      held = float_of_half(half_of(value));
      store(half_of(value));
      break;
    case kInt8: fits = whole(-128, 127, std::int8_t{}); break;
    case kUint8: fits = whole(0, 255, std::uint8_t{}); break;
    case kInt32: fits = whole(-2147483648.0, 2147483647.0, std::int32_t{}); break;
    case kInt64: fits = whole(-9.2e18, 9.2e18, std::int64_t{}); break;
    case kBool:
      held = value != 0;
      store(static_cast<std::uint8_t>(held));
      break;
    default: fits = false;
  }
  if (!fits || !std::isfinite(held) || std::fabs(held - value) > 1e-8 + 0.01 * std::fabs(value)) return false;
  const auto size = static_cast<std::size_t>(type.bytes);
  for (std::size_t at = 0; at + size <= tensor.size(); at += size) std::memcpy(tensor.data() + at, bytes, size);
  return true;
}

}  // namespace titans
