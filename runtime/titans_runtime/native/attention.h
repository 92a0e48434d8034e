// The arguments of the attention kernel: one token of each stream against a bounded past. Shapes use B streams, H heads
// of width d, D = H d, C tokens of a chunk, P persistent tokens and S chunks before this one.
#pragma once
#include <cstddef>
#include <cstdint>

constexpr int kMaxKinds = 2;

struct AttentionCall {
  std::ptrdiff_t batch, heads, width, chunk, past, window, persistent, positions;
  int kinds;  // how many tables of rows: of the tokens, and in mac of the memory's outputs before them
  const std::int64_t* position;         // [B] tokens of each stream before this one
  const float* queries;                 // queries, `queries_row` numbers from stream to stream
  const float* keys_values[kMaxKinds];  // keys, likewise `keys_values_row`; values are `value_offset` numbers behind
  std::ptrdiff_t queries_row, keys_values_row, value_offset;
  const float *persistent_key, *persistent_value;  // [H, P, d], keys normalised and scaled
  const float *cosine, *sine;                      // [2 positions, d]: of keys, and behind them, scaled, of queries
  const float *key, *value;                        // [B, H, S C, d]
  const float *row_key[kMaxKinds], *row_value[kMaxKinds];  // [C, B, H, d]
  float* out;                                              // [B, D]
  float *new_key[kMaxKinds], *new_value[kMaxKinds];        // [B, H, d]
};
