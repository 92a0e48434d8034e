// The arguments of a pretrained decoder's attention: new tokens of each stream against a window of the last W and the
// first N of the stream, its sinks (`titans_core.decoder.attention`). Shapes use B streams, T tokens, H heads of
// queries over K heads of keys and values of width d, C tokens of a chunk and S chunks before this one.
#pragma once
#include <cstddef>
#include <cstdint>

struct WindowCall {
  std::ptrdiff_t batch, tokens, heads, kv_heads, width, chunk, past, window, sinks, positions;
  const std::int64_t* position;          // [B] tokens of each stream before these
  const float* projected;                // [B, T, (H + 2 K) d]: queries, keys, values
  const float *query_gain, *key_gain;    // [d] of norms of each head, or null
  float epsilon;                         // of those norms
  const float *cosine, *sine;            // [2 positions, d]: of keys, and behind them, scaled, of queries
  const float *key, *value;              // [B, K, S C, d], keys rotated by their places in their chunks
  const float *sink_key, *sink_value;    // [B, K, N, d]
  const float *row_key, *row_value;      // [C, B, K, d] of the chunk so far; null where the tokens are whole chunks
  float* out;                            // [B, T, H d]
  float *new_key, *new_value;            // [T, B, K, d], or of whole chunks [B, K, S C, d]
  float *new_sink_key, *new_sink_value;  // of whole chunks [B, K, N, d]
};

constexpr std::ptrdiff_t kWindowTokens = 64;  // of whole chunks, as many make a task
