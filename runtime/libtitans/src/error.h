// What goes wrong inside the library, and how messages are put together. Exceptions stay within it: `c_api.cpp` turns
// each into a code and a line of text.
#pragma once
#include <exception>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "titans.h"

namespace titans {

inline void append_part(std::string& to, std::string_view part) { to += part; }
template <class Number, class = std::enable_if_t<std::is_arithmetic_v<Number>>>
void append_part(std::string& to, Number part) {
  to += std::to_string(part);
}

// The parts as one text.
template <class... Parts>
std::string text(const Parts&... parts) {
  std::string all;
  (append_part(all, parts), ...);
  return all;
}

class Error : public std::exception {
 public:
  Error(titans_code code, std::string finding, std::string_view remedy)
      : code(code), finding(std::move(finding)), message_(text(this->finding, "; ", remedy)) {}
  const char* what() const noexcept override { return message_.c_str(); }

  titans_code code;
  std::string finding;  // the message without its remedy

 private:
  std::string message_;
};

inline constexpr std::string_view kCopyAgain = "copy the bundle again, or export it again";
inline constexpr std::string_view kExportAgain = "export the bundle again";
inline constexpr std::string_view kRestoreAnother = "restore another copy, or start a new session";

[[noreturn]] inline void bundle_error(std::string finding, std::string_view remedy = kCopyAgain) {
  throw Error(TITANS_BUNDLE, std::move(finding), remedy);
}
[[noreturn]] inline void state_error(std::string finding, std::string_view remedy = kRestoreAnother) {
  throw Error(TITANS_STATE, std::move(finding), remedy);
}
[[noreturn]] inline void input_error(std::string finding, std::string_view remedy) {
  throw Error(TITANS_INPUT, std::move(finding), remedy);
}

}  // namespace titans
