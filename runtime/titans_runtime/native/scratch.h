// Working memory for one call at a time, kept by the thread.
#pragma once
#include <cstdlib>

#include "simd.h"

namespace TITANS_ISA {

class Scratch {
 public:
  ~Scratch() { std::free(start_); }
  // Begins anew with room for `floats` numbers, what `take` rounds up included.
  void need(Index floats) {
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
    return taken;
  }
  static Index rounded(Index floats) { return (floats + 15) / 16 * 16; }

 private:
  float *start_ = nullptr, *next_ = nullptr;
  std::size_t size_ = 0;
};

// The calling thread's.
inline Scratch& scratch() {
  static thread_local Scratch own;
  return own;
}

}  // namespace TITANS_ISA
