// Where the kernels get memory: from one function, which may say no. Nothing here throws or ends the process.
#pragma once
#include <cstddef>
#include <cstdlib>

#ifdef TITANS_FAIL_ALLOC  // of a build for tests: the n-th request from now on is refused
#include <atomic>
extern std::atomic<long> titans_requests, titans_refused;
#endif

// `bytes` at a multiple of `alignment`, or null where there are not as many. `std::free` gives them back.
inline void* allocate(std::size_t alignment, std::size_t bytes) {
#ifdef TITANS_FAIL_ALLOC
  if (++titans_requests == titans_refused) return nullptr;
#endif
  return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}
