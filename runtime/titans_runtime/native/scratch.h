// Working memory for one call at a time, kept by the thread.
#pragma once
#include <cstdlib>

#include "allocation.h"
#include "simd.h"
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace TITANS_ISA {

using Count = __int128;  // of numbers: no product of three sizes is too large for it

class Scratch {
 public:
  ~Scratch() {
#ifdef __SANITIZE_ADDRESS__
    if (start_) ASAN_UNPOISON_MEMORY_REGION(start_, size_);
#endif
    std::free(start_);
  }
  // Begins anew with room for `floats` numbers, what `take` rounds up included. False where there is none to be had.
  bool need(Count floats) {
#ifdef __SANITIZE_ADDRESS__
    floats += 64 * kGap;
    if (start_) ASAN_UNPOISON_MEMORY_REGION(start_, size_);
#endif
    constexpr Count kMost = Count{1} << 45;
    const std::size_t bytes = floats < kMost ? static_cast<std::size_t>(floats) * sizeof(float) : ~std::size_t{0};
#ifdef TITANS_FAIL_ALLOC
    size_ = 0;  // every call asks anew
#endif
    if (bytes > size_) {
      std::free(start_);
      start_ = floats < kMost ? static_cast<float*>(allocate(4096, bytes)) : nullptr;
      size_ = start_ ? bytes : 0;
    }
    next_ = start_;
    enough_ = start_ != nullptr;
    return enough_;
  }
  // A piece of it; null, and `enough` is false from then on, where `need` asked for too little.
  float* take(Index floats) {
    const Index left = static_cast<Index>(size_ / sizeof(float)) - (next_ - start_);
    if (!enough_ || rounded(floats) > left) {
      enough_ = false;
      return nullptr;
    }
    float* taken = next_;
    next_ += rounded(floats);
#ifdef __SANITIZE_ADDRESS__  // so that running over the end of a piece is noticed
    ASAN_POISON_MEMORY_REGION(next_, kGap * sizeof(float));
    next_ += kGap;
#endif
    return taken;
  }
  bool enough() const { return enough_; }
  static Index rounded(Index floats) { return (floats + 15) / 16 * 16; }

 private:
  static constexpr Index kGap = 16;
  float *start_ = nullptr, *next_ = nullptr;
  std::size_t size_ = 0;
  bool enough_ = false;
};

// The calling thread's.
inline Scratch& scratch() {
  static thread_local Scratch own;
  return own;
}

}  // namespace TITANS_ISA
