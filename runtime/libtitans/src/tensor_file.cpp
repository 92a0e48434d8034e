#include "tensor_file.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "error.h"

namespace titans {
namespace {

[[noreturn]] void unsound(const std::string& what) { throw std::invalid_argument(what); }

std::int64_t count_of(const Json& value, const std::string& name) {
  if (value.kind != Json::Kind::integer || value.integer < 0) unsound(text(name, " has something else than a size"));
  return value.integer;
}

Tensor tensor_of(const std::string& name, const Json& entry, std::span<const std::uint8_t> data, std::size_t start) {
  const Json *dtype = entry.find("dtype"), *shape = entry.find("shape"), *offsets = entry.find("data_offsets");
  if (!dtype || dtype->kind != Json::Kind::text || !shape || shape->kind != Json::Kind::list || !offsets ||
      offsets->kind != Json::Kind::list || offsets->items.size() != 2 || shape->items.size() > kMostAxes)
    unsound(text(name, " is not described as a tensor"));
  Tensor tensor;
  tensor.type = by_safetensors(dtype->text);
  if (!tensor.type) unsound(text(name, " is of type ", dtype->text.substr(0, 80), ", which is not one of ours"));
  for (const Json& size : shape->items) tensor.shape.push_back(count_of(size, name));
  tensor.bytes = times(elements(tensor.shape), tensor.type->bytes);
  const std::int64_t begin = count_of(offsets->items[0], name), end = count_of(offsets->items[1], name);
  const auto room = static_cast<std::int64_t>(data.size() - start);
  if (begin > end || end - begin != tensor.bytes || end > room) unsound(text(name, " does not lie within the file"));
  tensor.offset = static_cast<std::int64_t>(start) + begin;
  tensor.data = data.data() + tensor.offset;
  return tensor;
}

}  // namespace

TensorFile read_tensors(std::span<const std::uint8_t> data) {
  std::uint64_t length = 0;
  if (data.size() >= 8)
    for (int i = 7; i >= 0; --i) length = length << 8 | data[static_cast<std::size_t>(i)];
  if (data.size() < 8 || length > std::min(data.size() - 8, kMostHeaderBytes))
    unsound(text("it is not a complete safetensors file (", data.size(), " bytes)"));
  TensorFile file;
  file.head.assign(reinterpret_cast<const char*>(data.data()) + 8, length);
  file.header = parse_json(file.head);
  if (file.header.kind != Json::Kind::object) unsound("its header is not an object");
  const std::size_t start = 8 + length;
  std::vector<std::pair<std::pair<std::int64_t, std::int64_t>, std::string>> order;
  for (std::size_t i = 0; i < file.header.names.size(); ++i) {
    const std::string& name = file.header.names[i];
    if (name == "__metadata__") continue;
    const Tensor tensor = tensor_of(name, file.header.items[i], data, start);
    order.push_back({{tensor.offset, tensor.bytes}, name});
    file.tensors.emplace(name, tensor);
  }
  std::sort(order.begin(), order.end());
  auto end = static_cast<std::int64_t>(start);
  for (const auto& [place, name] : order) {
    if (place.first != end) unsound(text(name, " overlaps another tensor or leaves a hole before it"));
    end += place.second;
  }
  if (end != static_cast<std::int64_t>(data.size())) unsound("it has bytes that belong to no tensor");
  return file;
}

}  // namespace titans
