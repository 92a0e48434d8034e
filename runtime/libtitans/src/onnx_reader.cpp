#include "onnx_reader.h"

#include <cstring>
#include <set>
#include <stdexcept>

#include "error.h"

namespace titans {
namespace {

constexpr std::size_t kMostFields = 2'000'000;  // of one file; the largest that we write has 60,000
constexpr int kVarintBytes = 10;

[[noreturn]] void broken(const std::string& what) { throw std::invalid_argument(what); }

// Number and wire type as they are written, and a varint's number or where the content is.
struct Field {
  std::uint64_t tag;
  std::uint64_t number;
  std::size_t begin, end;
};

bool is_utf8(std::string_view value) {
  for (std::size_t at = 0; at < value.size();) {
    const auto lead = static_cast<unsigned char>(value[at++]);
    if (lead < 0x80) continue;
    const int more = lead >= 0xf0 && lead < 0xf5   ? 3
                     : lead >= 0xe0 && lead < 0xf0 ? 2
                     : lead >= 0xc2 && lead < 0xe0 ? 1
                                                   : 0;
    if (!more || at + static_cast<std::size_t>(more) > value.size()) return false;
    unsigned code = lead & (0x3f >> more);
    for (int i = 0; i < more; ++i) {
      const auto next = static_cast<unsigned char>(value[at++]);
      if ((next & 0xc0) != 0x80) return false;
      code = code << 6 | (next & 0x3f);
    }
    if ((more == 2 && (code < 0x800 || (code >= 0xd800 && code < 0xe000))) ||
        (more == 3 && (code < 0x10000 || code > 0x10ffff)))
      return false;
  }
  return true;
}

class Reader {
 public:
  explicit Reader(std::span<const std::uint8_t> data) : data_(data) {}

  OnnxModel model() {
    OnnxModel model;
    std::set<std::uint64_t> seen;
    for (const Field& field : fields(0, data_.size())) {
      if (field.tag == 66) {  // opset
        auto [domain, version] = pair(field);
        if (!model.opsets.emplace(domain, version).second)
          broken(text("it names the version of domain '", domain, "' twice"));
      } else if (field.tag == 114) {  // metadata
        fields(field.begin, field.end);
      } else {
        once(seen, field, "model");
        if (field.tag == 58)
          graph(model, field);
        else if (field.tag == 8)
          model.ir_version = static_cast<std::int64_t>(field.number);
        else if (field.tag != 18 && field.tag != 26 && field.tag != 34 && field.tag != 50 && field.tag != 40)
          unknown("model", field);
      }
    }
    if (!seen.count(58)) broken("it has no graph");
    return model;
  }

 private:
  void graph(OnnxModel& model, const Field& whole) {
    std::set<std::uint64_t> seen;
    for (const Field& field : fields(whole.begin, whole.end)) {
      switch (field.tag) {
        case 10: model.nodes.push_back(node(field)); break;
        case 42: model.initializers.push_back(tensor(field)); break;
        case 106: information(field); break;
        case 90: model.inputs.push_back(value(field)); break;
        case 98: model.outputs.push_back(value(field)); break;
        case 18:
        case 82: once(seen, field, "graph"); break;
        default: unknown("graph", field);
      }
    }
  }

  OnnxNode node(const Field& whole) {
    OnnxNode node;
    std::set<std::uint64_t> seen;
    for (const Field& field : fields(whole.begin, whole.end)) {
      switch (field.tag) {
        case 10: node.inputs.push_back(words(field)); continue;
        case 18: node.outputs.push_back(words(field)); continue;
        case 42: {
          auto [name, value] = attribute(field);
          if (!node.attributes.emplace(name, std::move(value)).second)
            broken(text("a node has attribute '", name, "' twice"));
          continue;
        }
        default: once(seen, field, "node");
      }
      switch (field.tag) {
        case 34: node.op = words(field); break;
        case 58: node.domain = words(field); break;
        case 26:
        case 50: words(field); break;
        default: unknown("node", field);
      }
    }
    return node;
  }

  std::pair<std::string, Attribute> attribute(const Field& whole) {
    std::string name;
    std::uint64_t kind = 0;
    std::set<std::uint64_t> seen;
    std::vector<std::int64_t> ints;
    std::int64_t integer = 0;
    float real = 0;
    std::string string;
    for (const Field& field : fields(whole.begin, whole.end)) {
      if (field.tag == 64) {
        ints.push_back(static_cast<std::int64_t>(field.number));
      } else if (field.tag == 66) {
        varints(field, ints);
      } else {
        once(seen, field, "attribute");
        switch (field.tag) {
          case 10: name = words(field); break;
          case 160: kind = field.number; break;
          case 24: integer = static_cast<std::int64_t>(field.number); break;
          case 21: std::memcpy(&real, data_.data() + field.begin, sizeof real); break;
          case 34: string = words(field); break;
          default: unknown("attribute", field);
        }
      }
    }
    if (kind == 7) return {name, ints};
    const std::uint64_t place = kind == 1 ? 21 : kind == 2 ? 24 : kind == 3 ? 34 : 0;
    for (const std::uint64_t tag : {21, 24, 34})
      if (!place || !ints.empty() || (tag != place && seen.count(tag)))
        broken(text("attribute '", name, "' is not one number, text or list of numbers"));
    if (kind == 1) return {name, real};
    if (kind == 2) return {name, integer};
    return {name, string};
  }

  OnnxTensor tensor(const Field& whole) {
    OnnxTensor tensor;
    std::set<std::uint64_t> seen;
    for (const Field& field : fields(whole.begin, whole.end)) {
      switch (field.tag) {
        case 8: tensor.dims.push_back(static_cast<std::int64_t>(field.number)); continue;
        case 10: varints(field, tensor.dims); continue;
        case 56: tensor.numbers.push_back(static_cast<std::int64_t>(field.number)); continue;
        case 58: varints(field, tensor.numbers); continue;
        case 106: {
          auto [key, value] = texts(field);
          if (!tensor.external.emplace(key, value).second) broken("an initializer says something of its data twice");
          continue;
        }
        default: once(seen, field, "initializer");
      }
      switch (field.tag) {
        case 16: tensor.type = static_cast<std::int64_t>(field.number); break;
        case 66: tensor.name = words(field); break;
        case 74:
          tensor.has_raw = true;
          tensor.raw = data_.subspan(field.begin, field.end - field.begin);
          break;
        case 112:
          if (field.number != 1) broken("an initializer is at a place that does not exist");
          tensor.is_external = true;
          break;
        default: unknown("initializer", field);
      }
    }
    const int places = !tensor.external.empty() + !tensor.numbers.empty() + tensor.has_raw;
    if (places > 1 || (!tensor.external.empty() && !tensor.is_external))
      broken(text("initializer '", tensor.name, "' has its data in two places"));
    return tensor;
  }

  OnnxValue value(const Field& whole) {
    OnnxValue value;
    std::set<std::uint64_t> seen;
    for (const Field& field : fields(whole.begin, whole.end)) {
      once(seen, field, "value");
      if (field.tag == 10) {
        value.name = words(field);
      } else if (field.tag == 18) {
        const std::vector<Field> kinds = fields(field.begin, field.end);
        if (kinds.size() != 1 || kinds[0].tag != 10) broken(text("value '", value.name, "' is not a tensor"));
        tensor_type(kinds[0], value);
      } else {
        unknown("value", field);
      }
    }
    return value;
  }

  // What is said of a value in between: ONNX Runtime infers it anew, and refuses what differs.
  void information(const Field& whole) {
    for (const Field& field : fields(whole.begin, whole.end)) {
      if (field.tag == 18) {
        if (field.begin == field.end || data_[field.begin] != 10) broken("a value is not a tensor");
      } else if (field.tag != 10) {
        unknown("value", field);
      }
    }
  }

  void tensor_type(const Field& whole, OnnxValue& to) {
    std::set<std::uint64_t> seen;
    for (const Field& field : fields(whole.begin, whole.end)) {
      once(seen, field, "type");
      if (field.tag == 8) {
        to.type = static_cast<std::int64_t>(field.number);
      } else if (field.tag == 18) {
        to.shape.emplace();
        for (const Field& size : fields(field.begin, field.end)) to.shape->push_back(size_of(size));
      } else {
        unknown("type", field);
      }
    }
  }

  std::int64_t size_of(const Field& whole) {
    if (whole.tag != 10) unknown("shape", whole);
    const std::vector<Field> found = fields(whole.begin, whole.end);
    if (found.empty()) return kUnknownSize;
    if (found.size() > 1 || (found[0].tag != 8 && found[0].tag != 18))
      broken("a dimension is neither a number nor a name");
    if (found[0].tag == 18) {
      words(found[0]);
      return kNamedSize;
    }
    const auto size = static_cast<std::int64_t>(found[0].number);
    if (size < 0) broken("a dimension is negative");
    return size;
  }

  std::pair<std::string, std::int64_t> pair(const Field& whole) {
    std::pair<std::string, std::int64_t> found;
    for (const Field& field : fields(whole.begin, whole.end)) {
      if (field.tag == 10)
        found.first = words(field);
      else if (field.tag == 16)
        found.second = static_cast<std::int64_t>(field.number);
      else
        broken("a version has fields that nobody writes");
    }
    return found;
  }

  std::pair<std::string, std::string> texts(const Field& whole) {
    std::pair<std::string, std::string> found;
    for (const Field& field : fields(whole.begin, whole.end)) {
      if (field.tag == 10) found.first = words(field);
      if (field.tag == 18) found.second = words(field);
    }
    return found;
  }

  // ------------------------------------------------------------ the wire format

  std::vector<Field> fields(std::size_t at, std::size_t end) {
    std::vector<Field> found;
    while (at < end) {
      Field field{varint(at, end), 0, 0, 0};
      switch (field.tag & 7) {
        case 2: {
          const std::uint64_t size = varint(at, end);
          if (size > end - at) broken(text("a field goes beyond its message, which ends at byte ", end));
          field.begin = at;
          at += size;
          field.end = at;
          break;
        }
        case 0: field.number = varint(at, end); break;
        case 1:
        case 5: {
          const std::size_t size = (field.tag & 7) == 5 ? 4 : 8;
          if (size > end - at) broken("it ends in the middle of a field");
          field.begin = at;
          at += size;
          field.end = at;
          break;
        }
        default: broken(text("a field at byte ", at, " is of a wire type that is not in use"));
      }
      took();
      found.push_back(field);
    }
    return found;
  }

  std::uint64_t varint(std::size_t& at, std::size_t end) {
    std::uint64_t number = 0;
    for (int i = 0; i < kVarintBytes; ++i) {
      if (at >= end) broken("it ends in the middle of a number");
      const std::uint8_t byte = data_[at++];
      if (i == kVarintBytes - 1 && byte > 1) break;
      number |= static_cast<std::uint64_t>(byte & 0x7f) << (7 * i);
      if (byte < 0x80) return number;
    }
    broken(text("the number before byte ", at, " has more than 64 bits"));
  }

  void varints(const Field& field, std::vector<std::int64_t>& to) {
    for (std::size_t at = field.begin; at < field.end; took())
      to.push_back(static_cast<std::int64_t>(varint(at, field.end)));
  }

  std::string words(const Field& field) {
    std::string found(reinterpret_cast<const char*>(data_.data()) + field.begin, field.end - field.begin);
    if (!is_utf8(found)) broken(text("the text at byte ", field.begin, " is not UTF-8"));
    return found;
  }

  void took() {
    if (++read_ > kMostFields) broken("it has too many parts");
  }

  static void once(std::set<std::uint64_t>& seen, const Field& field, const char* what) {
    if (!seen.insert(field.tag).second) broken(text("a ", what, " has field ", field.tag >> 3, " twice"));
  }

  [[noreturn]] static void unknown(const char* what, const Field& field) {
    broken(text("a ", what, " has field ", field.tag >> 3, ", which our exporter never writes"));
  }

  std::span<const std::uint8_t> data_;
  std::size_t read_ = 0;
};

}  // namespace

OnnxModel read_model(std::span<const std::uint8_t> data) { return Reader(data).model(); }

}  // namespace titans
