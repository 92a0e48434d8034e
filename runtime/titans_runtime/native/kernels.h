// The kernels of one instruction set. `memory`, `commit`, `read` and `attention` work on one stream's head; heads are
// independent, so calls may run at the same time. They return false where there is no working memory to be had.
#pragma once
#include "attention.h"
#include "blocks.h"
#include "linear.h"
#include "memory.h"
#include "window.h"

struct Kernels {
  const char* isa;
  bool (*memory)(const MemoryCall&, std::ptrdiff_t stream, std::ptrdiff_t head);
  bool (*commit)(const MemoryCall&, std::ptrdiff_t stream, std::ptrdiff_t head);  // of a full chunk's stored rows
  bool (*read)(const ReadCall&, std::ptrdiff_t stream, std::ptrdiff_t head);
  bool (*attention)(const AttentionCall&, std::ptrdiff_t stream, std::ptrdiff_t head);
  void (*gate)(const float* from, std::ptrdiff_t count, float* to);  // silu(from[:count]) * from[count:]
  std::ptrdiff_t (*linear_padded)(std::ptrdiff_t rows);              // columns of `LinearCall::transposed`
  void (*linear_transpose)(const LinearCall&, std::ptrdiff_t first, std::ptrdiff_t last);  // fills these rows of it
  void (*linear)(const LinearCall&, std::ptrdiff_t first, std::ptrdiff_t last);            // these rows of the matrix
  std::size_t (*block_bytes)(const BlockCall&);                                            // of `BlockCall::rounded`
  bool (*block_round)(const BlockCall&, std::ptrdiff_t first, std::ptrdiff_t last);        // these rows of x
  void (*block_products)(const BlockCall&, std::ptrdiff_t first, std::ptrdiff_t last);     // these outputs, of all rows
  void (*norm)(const float* x, const float* gain, std::ptrdiff_t count, float epsilon, float* to);
  bool (*window_tokens)(const WindowCall&, std::ptrdiff_t stream, std::ptrdiff_t head);
  bool (*window_chunks)(const WindowCall&, std::ptrdiff_t stream, std::ptrdiff_t kv_head, std::ptrdiff_t part);
  bool (*finite)(const float* numbers, std::ptrdiff_t count);
};
