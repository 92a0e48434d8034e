#include "json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <stdexcept>
#include <unordered_set>

#include "error.h"

namespace titans {
namespace {

constexpr std::size_t kDeepest = 128;         // the deepest that we write has six levels
constexpr std::size_t kMostValues = 500'000;  // the largest manifest that we write has 40,000

// Builds the tree from nlohmann's events, which come without recursion.
class Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  bool null() override { return add(Json()); }
  bool boolean(bool value) override { return add(Json::boolean_of(value)); }
  bool number_integer(number_integer_t value) override { return add(Json(static_cast<std::int64_t>(value))); }
  bool number_unsigned(number_unsigned_t value) override {
    if (value <= static_cast<number_unsigned_t>(std::numeric_limits<std::int64_t>::max()))
      return add(Json(static_cast<std::int64_t>(value)));
    return add(large(std::to_string(value)));
  }
  bool number_float(number_float_t value, const string_t& spelt) override {
    if (spelt.find_first_of(".eE") == std::string::npos) return add(large(spelt));
    return add(Json(static_cast<double>(value)));
  }
  bool string(string_t& value) override { return add(Json(std::move(value))); }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(Json::Kind::object); }
  bool start_array(std::size_t) override { return open(Json::Kind::list); }
  bool end_object() override {
    seen_.pop_back();
    open_.pop_back();
    return true;
  }
  bool end_array() override { return end_object(); }
  bool key(string_t& name) override {
    if (!seen_.back().insert(name).second)
      throw std::invalid_argument(text("'", name.substr(0, 80), "' appears twice"));
    open_.back()->names.push_back(std::move(name));
    return true;
  }
  bool parse_error(std::size_t at, const std::string&, const nlohmann::detail::exception&) override {
    throw std::invalid_argument(text("not valid JSON at byte ", at));
  }
  Json root;

 private:
  static Json large(std::string digits) {
    Json made(std::move(digits));
    made.kind = Json::Kind::large_integer;
    return made;
  }
  // A place in the tree stays where it is while it is open: only the innermost container grows.
  Json& place(Json value) {
    if (++values_ > kMostValues) throw std::invalid_argument("it has too many parts");
    if (open_.empty()) return root = std::move(value);
    open_.back()->items.push_back(std::move(value));
    return open_.back()->items.back();
  }
  bool add(Json value) {
    place(std::move(value));
    return true;
  }
  bool open(Json::Kind kind) {
    if (open_.size() >= kDeepest) throw std::invalid_argument("it is nested too deeply");
    Json container;
    container.kind = kind;
    open_.push_back(&place(std::move(container)));
    seen_.emplace_back();
    return true;
  }
  std::vector<Json*> open_;
  std::vector<std::unordered_set<std::string>> seen_;
  std::size_t values_ = 0;
};

void spell(std::string& to, std::string_view value) {
  static constexpr char kHex[] = "0123456789abcdef";
  const auto unit = [&to](unsigned code) {
    to += "\\u";
    for (int shift = 12; shift >= 0; shift -= 4) to += kHex[(code >> shift) & 15];
  };
  to += '"';
  for (std::size_t at = 0; at < value.size();) {
    const unsigned char lead = static_cast<unsigned char>(value[at++]);
    if (lead < 0x80) {
      switch (lead) {
        case '"': to += "\\\""; break;
        case '\\': to += "\\\\"; break;
        case '\n': to += "\\n"; break;
        case '\r': to += "\\r"; break;
        case '\t': to += "\\t"; break;
        case '\f': to += "\\f"; break;
        case '\b': to += "\\b"; break;
        default:
          if (lead < 0x20 || lead == 0x7f)
            unit(lead);
          else
            to += static_cast<char>(lead);
      }
      continue;
    }
    const int more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;  // the reader let nothing through but UTF-8
    unsigned code = lead & (0x3f >> more);
    for (int i = 0; i < more && at < value.size(); ++i)
      code = code << 6 | (static_cast<unsigned char>(value[at++]) & 0x3f);
    if (code >= 0x10000) {
      unit(0xd800 + ((code - 0x10000) >> 10));
      unit(0xdc00 + ((code - 0x10000) & 0x3ff));
    } else {
      unit(code);
    }
  }
  to += '"';
}

void write(std::string& to, const Json& value, bool sorted, bool compact) {
  const auto next = [&to, compact](std::size_t index) {
    if (index) to += compact ? "," : ", ";
  };
  switch (value.kind) {
    case Json::Kind::null: to += "null"; return;
    case Json::Kind::boolean: to += value.boolean ? "true" : "false"; return;
    case Json::Kind::integer: to += std::to_string(value.integer); return;
    case Json::Kind::large_integer: to += value.text; return;
    case Json::Kind::real: to += repr(value.real); return;
    case Json::Kind::text: spell(to, value.text); return;
    case Json::Kind::list:
      to += '[';
      for (std::size_t i = 0; i < value.items.size(); ++i) {
        next(i);
        write(to, value.items[i], sorted, compact);
      }
      to += ']';
      return;
    case Json::Kind::object: {
      std::vector<std::size_t> order(value.names.size());
      std::iota(order.begin(), order.end(), std::size_t{0});
      // The order of UTF-8 is that of code points.
      if (sorted)
        std::sort(order.begin(), order.end(), [&](auto a, auto b) { return value.names[a] < value.names[b]; });
      to += '{';
      for (std::size_t i = 0; i < order.size(); ++i) {
        next(i);
        spell(to, value.names[order[i]]);
        to += compact ? ":" : ": ";
        write(to, value.items[order[i]], sorted, compact);
      }
      to += '}';
    }
  }
}

}  // namespace

Json Json::boolean_of(bool value) {
  Json made;
  made.kind = Kind::boolean;
  made.boolean = value;
  return made;
}

Json Json::list_of(std::vector<Json> items) {
  Json made;
  made.kind = Kind::list;
  made.items = std::move(items);
  return made;
}

const Json* Json::find(std::string_view name) const {
  for (std::size_t i = 0; i < names.size(); ++i)
    if (names[i] == name) return &items[i];
  return nullptr;
}

Json parse_json(std::string_view document) {
  Builder builder;
  nlohmann::json::sax_parse(document.begin(), document.end(), &builder);
  return std::move(builder.root);
}

std::string dump_json(const Json& value, bool sorted, bool compact) {
  std::string made;
  write(made, value, sorted, compact);
  return made;
}

std::string repr(double value) {
  char spelt[40];
  const auto end = std::to_chars(spelt, spelt + sizeof spelt, value, std::chars_format::scientific).ptr;
  std::string_view all(spelt, static_cast<std::size_t>(end - spelt));
  std::string sign;
  if (all.front() == '-') {
    sign = "-";
    all.remove_prefix(1);
  }
  const auto e = all.find('e');
  if (e == std::string_view::npos) return sign + std::string(all);  // not a finite number
  std::string digits(1, all[0]);
  if (e > 2) digits += all.substr(2, e - 2);
  const int exponent = std::atoi(std::string(all.substr(e + 1)).c_str());
  const int count = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    const int size = std::abs(exponent);
    return text(sign, digits.substr(0, 1), count > 1 ? "." : "", digits.substr(1), exponent < 0 ? "e-" : "e+",
                size < 10 ? "0" : "", size);
  }
  if (exponent < 0) return sign + "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
  if (count <= exponent + 1)
    return sign + digits + std::string(static_cast<std::size_t>(exponent + 1 - count), '0') + ".0";
  const auto whole = static_cast<std::size_t>(exponent + 1);
  return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

}  // namespace titans
