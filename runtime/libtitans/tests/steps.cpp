// What a step costs: allocations and locks of libtitans itself, and time. Prints one line of JSON.
//
//   steps BUNDLE LIBONNXRUNTIME KERNELS|- STEPS [WARM-UP STEPS]
//
// Calls of malloc, operator new and pthread_mutex_lock are counted where their caller lies within libtitans.
#include <dlfcn.h>
#include <link.h>
#include <malloc.h>
#include <pthread.h>
#include <titans.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <new>
#include <vector>

extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
}

namespace {

std::uintptr_t first, last;  // of libtitans in memory
std::atomic<long> allocations, locks;

void count(std::atomic<long>& what, const void* caller) {
  const auto at = reinterpret_cast<std::uintptr_t>(caller);
  if (at >= first && at < last) ++what;
}

int find(dl_phdr_info* info, std::size_t, void* symbol) {
  const auto wanted = reinterpret_cast<std::uintptr_t>(symbol);
  std::uintptr_t low = UINTPTR_MAX, high = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& part = info->dlpi_phdr[i];
    if (part.p_type != PT_LOAD) continue;
    if (info->dlpi_addr + part.p_vaddr < low) low = info->dlpi_addr + part.p_vaddr;
    if (info->dlpi_addr + part.p_vaddr + part.p_memsz > high) high = info->dlpi_addr + part.p_vaddr + part.p_memsz;
  }
  if (wanted < low || wanted >= high) return 0;
  first = low;
  last = high;
  return 1;
}

double seconds(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

void check(titans_code code, const titans_error& error) {
  if (code == TITANS_OK) return;
  std::fprintf(stderr, "error: %s\n", error.message);
  std::exit(1);
}

}  // namespace

#define HERE __builtin_return_address(0)
#pragma GCC visibility push(default)  // in place of the system's, for libraries too
extern "C" void* malloc(std::size_t size) {
  count(allocations, HERE);
  return __libc_malloc(size);
}
extern "C" void* calloc(std::size_t number, std::size_t size) {
  count(allocations, HERE);
  return __libc_calloc(number, size);
}
extern "C" void* realloc(void* old, std::size_t size) {
  count(allocations, HERE);
  return __libc_realloc(old, size);
}
extern "C" int posix_memalign(void** to, std::size_t alignment, std::size_t size) {
  count(allocations, HERE);
  *to = __libc_memalign(alignment, size);
  return *to ? 0 : 12;
}
void* operator new(std::size_t size) {
  count(allocations, HERE);
  void* made = __libc_malloc(size);
  if (!made) throw std::bad_alloc();
  return made;
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  count(allocations, HERE);
  return __libc_malloc(size);
}
void operator delete(void* it) noexcept { std::free(it); }
void operator delete(void* it, std::size_t) noexcept { std::free(it); }
extern "C" int pthread_mutex_lock(pthread_mutex_t* mutex) {
  static const auto real = reinterpret_cast<int (*)(pthread_mutex_t*)>(dlsym(RTLD_NEXT, "pthread_mutex_lock"));
  count(locks, HERE);
  return real(mutex);
}
#pragma GCC visibility pop

int main(int argc, char** argv) {
  const double began = seconds(CLOCK_MONOTONIC);
  if (argc < 5) return 2;
  dl_iterate_phdr(find, reinterpret_cast<void*>(&titans_abi));
  const long steps = std::atol(argv[4]), warm_up = argc > 5 ? std::atol(argv[5]) : 200;
  titans_error error;
  titans_options options;
  titans_options_init(&options);
  options.onnxruntime = argv[2];
  options.kernels = std::strcmp(argv[3], "-") == 0 ? nullptr : argv[3];
  options.threads = 1;
  titans_model* model = nullptr;
  titans_session* session = nullptr;
  check(titans_model_load(argv[1], &options, &model, &error), error);
  titans_model_info info{};
  info.size = sizeof info;
  check(titans_model_describe(model, &info, &error), error);
  check(titans_session_open(model, &session, &error), error);
  std::vector<float> logits(static_cast<std::size_t>(info.outputs));
  titans_outputs outputs{};
  outputs.last = logits.data();
  outputs.last_count = logits.size();
  std::int64_t id = 1;
  double first_token = 0;
  const auto step = [&] {
    check(titans_session_feed(session, &id, 1, &outputs, &error), error);
    std::size_t best = 0;
    for (std::size_t i = 1; i < logits.size(); ++i)
      if (logits[i] > logits[best]) best = i;
    id = static_cast<std::int64_t>(best);
  };
  for (long i = 0; i < warm_up; ++i) {
    step();
    if (i == 0) first_token = seconds(CLOCK_MONOTONIC) - began;
  }
  const long counted = allocations, locked = locks;  // loading and warming up has some of both, or the counts are wrong
  const double cpu = seconds(CLOCK_PROCESS_CPUTIME_ID), wall = seconds(CLOCK_MONOTONIC);
  for (long i = 0; i < steps; ++i) step();
  const double us = 1e6 / static_cast<double>(steps > 0 ? steps : 1);
  std::printf(
      "{\"allocations\": %ld, \"locks\": %ld, \"allocations_before\": %ld, \"locks_before\": %ld, \"us\": %.2f, "
      "\"cpu_us\": %.2f, "
      "\"first_token_ms\": %.2f, \"position\": %lld}\n",
      allocations - counted, locks - locked, counted, locked, (seconds(CLOCK_MONOTONIC) - wall) * us,
      (seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu) * us, 1e3 * first_token,
      static_cast<long long>(titans_session_position(session)));
  titans_session_close(session);
  titans_model_close(model);
}
