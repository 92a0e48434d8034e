// What the kernels of a matrix in blocks are told: N rows of x times W, whose numbers are 4 or 8 bits wide and share a
// scale per 32 of them. W lies as ONNX Runtime's MatMulNBits has it, and is read in place.
//
//   W[m, k] = (code - middle) * scale                       8 of 4 bits, 128 of 8 bits
//   W[m, k] = code * scale + least                          where a block has a least number too, as GGUF's Q4_1
//
// x is rounded to 8 bits, 127 steps up to the largest of each 32 numbers, and sums of 32 products are exact.
#pragma once
#include <cstddef>
#include <cstdint>

constexpr std::ptrdiff_t kBlockSize = 32;    // numbers that share a scale
constexpr std::ptrdiff_t kSingleRows = 4;    // so few rows are multiplied with each row of W as it is unpacked
constexpr std::ptrdiff_t kMostBlocks = 512;  // of a row of W: the scales of a few of them lie on the stack
constexpr std::ptrdiff_t kBlockRows = 16;    // more are taken so many at a time, the last ones filled up with zeros

struct BlockCall {
  std::ptrdiff_t rows, inputs, outputs;  // N, k, m
  int bits;                              // 4 or 8
  const float* x;                        // [N, k]
  const std::uint8_t* codes;             // [m, blocks, 32 * bits / 8]; of 4 bits, the first of two is the lower half
  const std::uint16_t *scales, *least;   // [m, blocks] float16; `least` may be null
  const float* norm;                     // [k] or null: x is divided by its root mean square and multiplied with this
  float epsilon;                         // of that norm
  bool gated;                            // the outputs are silu(y[:m/2]) * y[m/2:]
  const float* added;                    // [N, outputs of the operator] or null: what is added to them
  void* rounded;                         // working memory: `block_bytes`
  float* out;                            // [N, m], or [N, m / 2] where gated
};
