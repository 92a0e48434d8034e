// Working memory for one call at a time, kept by the thread.
#pragma once
#include <cstdlib>

#include "simd.h"
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace TITANS_ISA {

class Scratch {
 public:
  ~Scratch() {
#ifdef __SANITIZE_ADDRESS__
    if (start_) ASAN_UNPOISON_MEMORY_REGION(start_, size_);
#endif
    std::free(start_);
  }
  // Begins anew with room for `floats` numbers, what `take` rounds up included.
  void need(Index floats) {
#ifdef __SANITIZE_ADDRESS__
    floats += 64 * kGap;
    if (start_) ASAN_UNPOISON_MEMORY_REGION(start_, size_);
#endif
    const std::size_t bytes = (static_cast<std::size_t>(floats) * sizeof(float) + 4095) / 4096 * 4096;
    if (bytes > size_) {
      std::free(start_);
      start_ = static_cast<float*>(std::aligned_alloc(4096, bytes));
      size_ = start_ ? bytes : 0;
      if (!start_) std::abort();
    }
    next_ = start_;
  }
  float* take(Index floats) {
    float* taken = next_;
    next_ += rounded(floats);
#ifdef __SANITIZE_ADDRESS__  // so that running over the end of a piece is noticed
    ASAN_POISON_MEMORY_REGION(next_, kGap * sizeof(float));
    next_ += kGap;
#endif
    return taken;
  }
  static Index rounded(Index floats) { return (floats + 15) / 16 * 16; }

 private:
  static constexpr Index kGap = 16;
  float *start_ = nullptr, *next_ = nullptr;
  std::size_t size_ = 0;
};

// The calling thread's.
inline Scratch& scratch() {
  static thread_local Scratch own;
  return own;
}

}  // namespace TITANS_ISA
