// The arguments of the kernel of a large matrix: N rows of x times W, which is stored transposed and read once.
#pragma once
#include <cstddef>

struct LinearCall {
  std::ptrdiff_t rows, inputs, outputs;  // N, k, m
  const float* x;                        // [N, k]
  const float* weight;                   // [m, k]
  float* transposed;                     // [k, padded N] working memory, or null where `direct`
  float* out;                            // [N, m]
};

constexpr std::ptrdiff_t kDirectRows = 4;  // so few rows are multiplied with each row of W as it is read
