// ONNX Runtime, opened from a shared library that the caller names, and its C interface as far as it is used.
//
// The library hands over a table of functions that only ever grows at its end. The functions are declared here by their
// positions in it, so that no header of ONNX Runtime is needed to build. They are those of the published C interface,
// which every release has kept.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "types.h"

namespace titans {

struct OrtStatus;
struct OrtEnv;
struct OrtSession;
struct OrtOptions;
struct OrtRunOptions;
struct OrtMemoryInfo;
struct OrtValue;
struct OrtBinding;

class Ort;
template <class T>
void release_from(const Ort& ort, T* it);

// What is released in the end.
template <class T>
class Owned {
 public:
  Owned() = default;
  Owned(const Ort& ort, T* it) : ort_(&ort), it_(it) {}
  Owned(Owned&& other) noexcept : ort_(other.ort_), it_(other.it_) { other.it_ = nullptr; }
  Owned& operator=(Owned&& other) noexcept {
    std::swap(ort_, other.ort_);
    std::swap(it_, other.it_);
    return *this;
  }
  ~Owned() {
    if (it_) release_from(*ort_, it_);
  }
  T* get() const { return it_; }
  explicit operator bool() const { return it_ != nullptr; }

 private:
  const Ort* ort_ = nullptr;
  T* it_ = nullptr;
};

class Ort {
 public:
  // Opens the library once for each process. Throws `Error` of TITANS_PROVIDER.
  static const Ort& open(const char* library);

  // Throws `std::runtime_error` with the first line of a refusal.
  void check(OrtStatus* status) const;

  // The values of a pair of options, threads, and a provider by name ("cpu" adds none). Throws as `check`.
  Owned<OrtOptions> options(int threads, const std::string& provider) const;
  void entry(OrtOptions* options, const char* name, const char* value) const;
  void kernels(OrtOptions* options, const char* library) const { check(call<OrtStatus*>(228, options, library)); }
  void initializer(OrtOptions* options, const char* name, const OrtValue* value) const {
    check(call<OrtStatus*>(150, options, name, value));
  }
  void external_file(OrtOptions* options, const char* name, const void* data, std::size_t size) const;
  OrtSession* session(OrtOptions* options, std::span<const std::uint8_t> graph) const;
  // A tensor over memory of the caller's.
  OrtValue* tensor(const ElementType& type, const Sizes& shape, void* data, std::size_t bytes) const;
  OrtBinding* binding(OrtSession* session) const;
  void input(OrtBinding* binding, const char* name, const OrtValue* value) const {
    check(call<OrtStatus*>(136, binding, name, value));
  }
  void output(OrtBinding* binding, const char* name, const OrtValue* value) const {
    check(call<OrtStatus*>(137, binding, name, value));
  }
  OrtStatus* run(OrtSession* session, OrtBinding* binding) const {
    return call<OrtStatus*>(133, session, static_cast<const OrtRunOptions*>(run_options_),
                            static_cast<const OrtBinding*>(binding));
  }
  std::vector<std::string> providers() const;

  void release(OrtStatus* it) const { call<void>(93, it); }
  void release(OrtSession* it) const { call<void>(95, it); }
  void release(OrtValue* it) const { call<void>(96, it); }
  void release(OrtOptions* it) const { call<void>(100, it); }
  void release(OrtBinding* it) const { call<void>(135, it); }

  const std::string& version() const { return version_; }

 private:
  Ort(void* handle, std::string path);
  void append_provider(OrtOptions* options, const std::string& provider) const;

  template <class Result, class... Arguments>
  Result call(int position, Arguments... arguments) const {
    return reinterpret_cast<Result (*)(Arguments...)>(const_cast<void*>(functions_[position]))(arguments...);
  }
  const void* const* functions_ = nullptr;
  OrtEnv* env_ = nullptr;
  OrtMemoryInfo* memory_ = nullptr;
  OrtRunOptions* run_options_ = nullptr;
  std::string path_, version_;
};

template <class T>
void release_from(const Ort& ort, T* it) {
  ort.release(it);
}

// Numbers too small for full precision count as zero while this lives: a decayed memory reaches them, and the processor
// handles each of them many times slower. The calling thread's own setting comes back after it.
class DenormalsAreZero {
 public:
  DenormalsAreZero();
  ~DenormalsAreZero();
  DenormalsAreZero(const DenormalsAreZero&) = delete;
  DenormalsAreZero& operator=(const DenormalsAreZero&) = delete;

 private:
  std::uint64_t before_ = 0;
};

}  // namespace titans
