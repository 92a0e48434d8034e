// A JSON document as a tree, and its canonical spelling. nlohmann/json reads it; here its names are held to be
// different, and its nesting and size to bounds. Does not know what a document is about.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace titans {

struct Json {
  enum class Kind { null, boolean, integer, large_integer, real, text, list, object };

  Json() = default;
  Json(std::int64_t value) : kind(Kind::integer), integer(value) {}
  Json(double value) : kind(Kind::real), real(value) {}
  Json(std::string value) : kind(Kind::text), text(std::move(value)) {}
  static Json boolean_of(bool value);
  static Json list_of(std::vector<Json> items);
  static Json object_of() {
    Json made;
    made.kind = Kind::object;
    return made;
  }
  Json& with(std::string name, Json value) {
    names.push_back(std::move(name));
    items.push_back(std::move(value));
    return *this;
  }
  const Json* find(std::string_view name) const;  // of an object; null where it has no such field

  Kind kind = Kind::null;
  bool boolean = false;
  std::int64_t integer = 0;
  double real = 0;
  std::string text;                // also the digits of a whole number that 64 bits do not hold
  std::vector<Json> items;         // of a list or an object
  std::vector<std::string> names;  // of an object, in their order
};

// Reads a document. Throws `std::invalid_argument` with what is wrong with it.
Json parse_json(std::string_view document);

// As Python's `json.dumps` spells it: ASCII alone, numbers as `repr` has them.
std::string dump_json(const Json& value, bool sorted, bool compact);

// A number as Python's `repr` spells it.
std::string repr(double value);

}  // namespace titans
