#include "ort.h"

#include <dlfcn.h>
#include <sched.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <stdexcept>

#include "error.h"

namespace titans {
namespace {

constexpr std::uint32_t kInterface = 24;  // the first that refuses external data outside of a model's directory
constexpr int kErrors = 3;                // the level of what is logged: errors only; they come back as well

struct Base {
  const void* const* (*get)(std::uint32_t version);
  const char* (*version)();
};

// The cores that this process may use: a thread more than that waits for the others at every barrier.
int usable_cores() {
  cpu_set_t allowed;
  int cores = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) cores = CPU_COUNT(&allowed);
  if (std::FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
    double quota = 0, period = 0;
    if (std::fscanf(file, "%lf %lf", &quota, &period) == 2 && quota > 0 && period > 0)
      cores = std::min(cores, static_cast<int>(quota / period + 0.5));
    std::fclose(file);
  }
  return std::max(1, cores);
}

[[noreturn]] void cannot_open(const std::string& why) {
  throw Error(TITANS_PROVIDER, text("ONNX Runtime cannot be opened (", why, ")"),
              "name its shared library, version 1.24.1 or newer, in titans_options.onnxruntime");
}

}  // namespace

const Ort& Ort::open(const char* library) {
  static std::mutex mutex;
  static Ort* opened = nullptr;  // stays for as long as the process: its threads may outlive any model
  const std::lock_guard lock(mutex);
  const std::unique_ptr<char, void (*)(void*)> real(library ? realpath(library, nullptr) : nullptr, std::free);
  const std::string path = real ? real.get() : library ? library : "";
  if (opened) {
    if (!path.empty() && path != opened->path_)
      throw Error(TITANS_PROVIDER,
                  text("this process has opened ", opened->path_.empty() ? "libonnxruntime.so" : opened->path_),
                  "load every model with the same ONNX Runtime");
    return *opened;
  }
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  void* handle = nullptr;
  if (!path.empty()) {
    handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  } else {
    handle = dlopen("libonnxruntime.so", RTLD_NOW | RTLD_LOCAL);
    if (!handle) handle = dlopen("libonnxruntime.so.1", RTLD_NOW | RTLD_LOCAL);
  }
  if (!handle) {
    const char* why = dlerror();
    cannot_open(why ? why : "no reason is given");
  }
  return *(opened = new Ort(handle, path));
}

Ort::Ort(void* handle, std::string path) : path_(std::move(path)) {
  const auto get = reinterpret_cast<const Base* (*)()>(dlsym(handle, "OrtGetApiBase"));
  if (!get) cannot_open("it has no OrtGetApiBase");
  version_ = get()->version();
  functions_ = get()->get(kInterface);
  if (!functions_) cannot_open(text("its version is ", version_));
  try {
    check(call<OrtStatus*>(3, kErrors, "titans", &env_));
    check(call<OrtStatus*>(69, 0, 0, &memory_));
    check(call<OrtStatus*>(39, &run_options_));
  } catch (const std::runtime_error& error) {
    cannot_open(error.what());
  }
}

void Ort::check(OrtStatus* status) const {
  if (!status) return;
  std::string why = call<const char*>(2, static_cast<const OrtStatus*>(status));
  release(status);
  throw std::runtime_error(why.substr(0, why.find('\n')).substr(0, 400));
}

Owned<OrtOptions> Ort::options(int threads, const std::string& provider) const {
  OrtOptions* options = nullptr;
  check(call<OrtStatus*>(10, &options));
  Owned<OrtOptions> owned(*this, options);
  check(call<OrtStatus*>(22, options, kErrors));
  const int cores = usable_cores();
  if (!threads && cores < sysconf(_SC_NPROCESSORS_ONLN)) threads = cores;  // ONNX Runtime counts the machine's
  if (threads) check(call<OrtStatus*>(24, options, threads));
  entry(options, "session.set_denormal_as_zero", "1");
  entry(options, "session.intra_op.spin_duration_us", "1000");
  if (provider != "cpu") append_provider(options, provider);
  return owned;
}

void Ort::append_provider(OrtOptions* options, const std::string& provider) const {
  if (provider == "CUDAExecutionProvider") {
    void* cuda = nullptr;
    check(call<OrtStatus*>(205, &cuda));
    OrtStatus* status = call<OrtStatus*>(204, options, static_cast<const void*>(cuda));
    call<void>(208, cuda);
    check(status);
    return;
  }
  const char* const* none = nullptr;
  check(call<OrtStatus*>(216, options, provider.c_str(), none, none, std::size_t{0}));
}

void Ort::entry(OrtOptions* options, const char* name, const char* value) const {
  check(call<OrtStatus*>(130, options, name, value));
}

void Ort::external_file(OrtOptions* options, const char* name, const void* data, std::size_t size) const {
  const char* names[] = {name};
  char* buffers[] = {static_cast<char*>(const_cast<void*>(data))};
  const std::size_t sizes[] = {size};
  check(call<OrtStatus*>(279, options, static_cast<const char* const*>(names), static_cast<char* const*>(buffers),
                         static_cast<const std::size_t*>(sizes), std::size_t{1}));
}

OrtSession* Ort::session(OrtOptions* options, std::span<const std::uint8_t> graph) const {
  OrtSession* made = nullptr;
  const DenormalsAreZero denormals;
  check(call<OrtStatus*>(8, static_cast<const OrtEnv*>(env_), static_cast<const void*>(graph.data()), graph.size(),
                         static_cast<const OrtOptions*>(options), &made));
  return made;
}

OrtValue* Ort::tensor(const ElementType& type, const Sizes& shape, void* data, std::size_t bytes) const {
  OrtValue* made = nullptr;
  check(call<OrtStatus*>(49, static_cast<const OrtMemoryInfo*>(memory_), data, bytes, shape.data(), shape.size(),
                         type.onnx, &made));
  return made;
}

OrtBinding* Ort::binding(OrtSession* session) const {
  OrtBinding* made = nullptr;
  check(call<OrtStatus*>(134, session, &made));
  return made;
}

std::vector<std::string> Ort::providers() const {
  char** names = nullptr;
  int count = 0;
  check(call<OrtStatus*>(125, &names, &count));
  std::vector<std::string> found(names, names + count);
  if (OrtStatus* status = call<OrtStatus*>(126, names, count)) release(status);
  return found;
}

#if defined(__x86_64__)
DenormalsAreZero::DenormalsAreZero() : before_(_mm_getcsr()) { _mm_setcsr(static_cast<unsigned>(before_) | 0x8040); }
DenormalsAreZero::~DenormalsAreZero() { _mm_setcsr(static_cast<unsigned>(before_)); }
#elif defined(__aarch64__)
DenormalsAreZero::DenormalsAreZero() {
  asm volatile("mrs %0, fpcr" : "=r"(before_));
  asm volatile("msr fpcr, %0" ::"r"(before_ | (std::uint64_t{1} << 24)));
}
DenormalsAreZero::~DenormalsAreZero() { asm volatile("msr fpcr, %0" ::"r"(before_)); }
#else
DenormalsAreZero::DenormalsAreZero() = default;
DenormalsAreZero::~DenormalsAreZero() = default;
#endif

}  // namespace titans
