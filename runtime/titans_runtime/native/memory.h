// The arguments of the kernels: one call of the memory for a batch of streams, all pointers to dense float32 tensors.
// Shapes use B streams, T tokens, H heads of width d, D = H d, C tokens of a chunk, and w[0] ... w[depth] the widths of
// the memory's networks (w[0] = w[depth] = d).
#pragma once
#include <cstddef>
#include <cstdint>

constexpr int kMaxDepth = 4;

struct MemoryShape {
  std::ptrdiff_t batch, tokens, heads, width, chunk, taps, depth;
  std::ptrdiff_t widths[kMaxDepth + 1];
  bool silu;                          // else GELU with erf
  float bound;                        // of surprise; 0 is none
  float max_step;                     // of theta
  int gates, forget, momentum, step;  // how many gates there are, and the index of each or -1
};

struct MemoryCall {
  MemoryShape shape;
  bool fold;                         // a whole chunk from a chunk boundary, written back at its end
  const std::int64_t* position;      // [B] tokens of each stream before this call; not read where `fold`
  const std::int64_t* length;        // [B] real tokens, or null for T
  const float* queries;              // [B, T, D] projected queries
  const float* keys_values_gates;    // [B, T, 2 D + gates H] projected keys, values and gate logits
  const float* conv_state;           // [B, taps - 1, 3 D]
  const float* conv;                 // [taps, 3 D]
  const float* bias[3];              // [H] per gate
  const float* scale;                // [B, H]
  const float* writes;               // [B, H, C]
  const float* momentum_scale;       // [B, H]
  const float* momentum_decay;       // [B, H]
  const float* momentum_writes;      // [B, H, C]
  const float* memory[kMaxDepth];    // [B, H, w[l], w[l + 1]]
  const float* momentum[kMaxDepth];  // the momentum, likewise
  const float* start[kMaxDepth];     // [H, w[l], w[l + 1]] what forgetting leaves, for all streams; null for zero
  const float* inputs[kMaxDepth];    // [C, B, H, w[l]] stored rows
  const float* errors[kMaxDepth];    // [C, B, H, w[l + 1]]
  float* outputs;                    // [B, T, D]
  float* surprise;                   // [B, H, T]
  float* new_conv_state;             // [B, taps - 1, 3 D]
  float* new_scale;
  float* new_writes;
  float* new_momentum_scale;
  float* new_momentum_decay;
  float* new_momentum_writes;
  float* new_memory[kMaxDepth];
  float* new_momentum[kMaxDepth];
  float* new_inputs[kMaxDepth];  // [T, B, H, w[l]]
  float* new_errors[kMaxDepth];  // [T, B, H, w[l + 1]]
};

struct ReadCall {
  MemoryShape shape;
  const std::int64_t* length;
  const float* queries;     // [B, T, D]
  const float* conv_state;  // [B, taps - 1, D]
  const float* conv;        // [taps, 3 D], of which the first D columns are used
  const float* memory[kMaxDepth];
  float* outputs;         // [B, T, D]
  float* new_conv_state;  // [B, taps - 1, D]
};
