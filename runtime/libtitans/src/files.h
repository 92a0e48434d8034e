// Files that somebody else chose: regular ones alone, and no more of them than was expected. Does not know what is in
// them.
#pragma once
#include <sys/stat.h>

#include <cstdint>
#include <string>
#include <vector>

namespace titans {

inline constexpr std::int64_t kMiB = 1 << 20;

// A descriptor that is closed in the end.
class Handle {
 public:
  Handle() = default;
  explicit Handle(int number) : number_(number) {}
  Handle(Handle&& other) noexcept : number_(other.number_) { other.number_ = -1; }
  Handle& operator=(Handle&& other) noexcept;
  ~Handle();
  int get() const { return number_; }
  explicit operator bool() const { return number_ >= 0; }

 private:
  int number_ = -1;
};

// What the system refused, or what this library refuses to read.
struct FileProblem {
  std::string reason;
  std::string remedy;
  bool missing = false;
};

Handle open_regular(const std::string& path);                                // throws FileProblem
std::vector<std::uint8_t> read_all(const Handle& file, std::int64_t limit);  // throws FileProblem
struct stat status(const Handle& file);                                      // throws FileProblem
FileProblem problem(int number);                                             // of an errno

// A file's bytes in memory, as long as this lives, whatever becomes of its name.
class Mapping {
 public:
  Mapping() = default;
  explicit Mapping(const Handle& file);  // throws FileProblem
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();
  const std::uint8_t* data() const { return data_; }
  std::size_t size() const { return size_; }
  const struct stat& identity() const { return identity_; }

 private:
  std::uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
  struct stat identity_{};
};

// The place that a path leads to, links followed, which is a regular file or is missing. Throws FileProblem.
std::string regular_target(const std::string& path);
// Replaces a file: all of the old or all of the new. A new file is its user's alone. Throws FileProblem.
void replace_file(const std::string& target, const std::vector<std::uint8_t>& data);
// Keeps other saves to a target out for as long as it lives; without a lock where the system has none.
Handle locked(const std::string& target);

}  // namespace titans
