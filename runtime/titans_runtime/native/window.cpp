// One head's attention of a pretrained decoder: `titans_core.decoder.attention`, a few tokens inside a chunk or some
// tokens of whole chunks.
#include "window.h"

#include <cmath>

#include "kernels.h"
#include "products.h"
#include "rows.h"
#include "scratch.h"
#include "simd.h"

namespace TITANS_ISA {

void norm(const float* x, const float* gain, Index count, float epsilon, float* to);

namespace {

// The projections of token t of stream b: head h of the queries, or of the keys, or of the values behind them.
const float* projected(const WindowCall& call, Index b, Index t, Index h) {
  return call.projected + ((b * call.tokens + t) * (call.heads + 2 * call.kv_heads) + h) * call.width;
}

// The same of a query or a key, normed if they are; `plain` is working memory.
const float* plain_of(const WindowCall& call, const float* from, const float* gain, float* plain) {
  if (!gain) return from;
  norm(from, gain, call.width, call.epsilon, plain);
  return plain;
}

void turn(const WindowCall& call, const float* from, Index place, float* to) {
  rotate(call.width, from, call.cosine + place * call.width, call.sine + place * call.width, to);
}

Index least(Index a, Index b) { return a < b ? a : b; }
Index most(Index a, Index b) { return a > b ? a : b; }

}  // namespace

bool window_tokens(const WindowCall& call, Index b, Index h) {
  const Index d = call.width, C = call.chunk, T = call.tokens, W = call.window, span = call.past * C;
  const Index k = h / (call.heads / call.kv_heads), lane = b * call.kv_heads + k, lanes = call.batch * call.kv_heads;
  const bool first = h % (call.heads / call.kv_heads) == 0;  // of the heads that share keys, the one that writes them
  const Index before = call.position[b], place = before % C, started = before - place;
  if (!scratch().need(Count{T + 4} * (d + 16) + call.sinks + span + C + T + 64)) return false;
  float *plain = scratch().take(d), *rotated = scratch().take(d), *own = scratch().take(T * d);
  float* scores = scratch().take(call.sinks + span + C + T);
  if (!scratch().enough()) return false;
  for (Index t = 0; t < T; ++t) {
    turn(call, plain_of(call, projected(call, b, t, call.heads + k), call.key_gain, plain), place + t, own + t * d);
    if (!first) continue;
    std::memcpy(call.new_key + (t * lanes + lane) * d, own + t * d, d * sizeof(float));
    std::memcpy(call.new_value + (t * lanes + lane) * d, projected(call, b, t, call.heads + call.kv_heads + k),
                d * sizeof(float));
  }
  const Index value_row = (call.heads + 2 * call.kv_heads) * d;
  for (Index t = 0; t < T; ++t) {
    const float* query = plain_of(call, projected(call, b, t, h), call.query_gain, plain);
    const Index at = before + t, here = place + t;
    const Index sinks = most(least(at - W + 1, call.sinks), 0);
    const Index reach = least(most(W - 1 - here, 0), least(span, started));  // slots of the past, from its newer end
    const Index oldest = most(here + 1 - W, 0), rows = most(place - oldest, 0), among = most(oldest - place, 0);
    Index count = 0;
    if (sinks) {
      turn(call, query, call.positions + least(at, call.sinks + W - 1), rotated);
      score(sinks, d, rotated, call.sink_key + lane * call.sinks * d, d, scores);
      count = sinks;
    }
    const float* past_key = call.key + lane * span * d;
    for (Index c = (span - reach) / C; reach && c < call.past; ++c) {  // a query is rotated once for each chunk
      const Index from = most(c * C, span - reach);
      turn(call, query, call.positions + here + (call.past - c) * C, rotated);
      score((c + 1) * C - from, d, rotated, past_key + from * d, d, scores + count);
      count += (c + 1) * C - from;
    }
    turn(call, query, call.positions + here, rotated);
    score(rows, d, rotated, call.row_key + (oldest * lanes + lane) * d, lanes * d, scores + count);
    score(t + 1 - among, d, rotated, own + among * d, d, scores + count + rows);
    count += rows + t + 1 - among;
    softmax(count, scores);

    float* out = call.out + ((b * T + t) * call.heads + h) * d;
    std::memset(out, 0, d * sizeof(float));
    const float* weights = scores;
    const auto add = [&](Index some, const float* values, Index row) {
      add_values(some, d, weights, values, row, out);
      weights += some;
    };
    add(sinks, call.sink_value + lane * call.sinks * d, d);
    add(reach, call.value + (lane * span + span - reach) * d, d);
    add(rows, call.row_value + (oldest * lanes + lane) * d, lanes * d);
    add(t + 1 - among, projected(call, b, among, call.heads + call.kv_heads + k), value_row);
  }
  return true;
}

// Tokens from..to of whole chunks, all heads that share keys. Keys lie side by side in places, the chunks before these
// first; queries behind them.
bool window_chunks(const WindowCall& call, Index b, Index k, Index part) {
  const Index d = call.width, C = call.chunk, T = call.tokens, W = call.window, N = call.sinks, span = call.past * C;
  const Index group = call.heads / call.kv_heads, lane = b * call.kv_heads + k, before = call.position[b];
  const Index from = part * kWindowTokens, to = least(from + kWindowTokens, T), rows = to - from;
  const Index low = most(span - least(span, before), span + from - W + 1), high = span + to, seen = high - low;
  const Index stride = (seen + 2 * kLanes - 1) / (2 * kLanes) * (2 * kLanes);
  if (!scratch().need(Count{2} * d * stride + Count{rows} * (stride + N + 2 * d) + Count{N + 3} * d + 32 * 16))
    return false;
  float *keys = scratch().take(d * stride), *values = scratch().take(stride * d),
        *scores = scratch().take(rows * stride);
  float *queries = scratch().take(rows * d), *outputs = scratch().take(rows * d), *sinks = scratch().take(rows * N);
  float *plain = scratch().take(d), *rotated = scratch().take(d), *first_keys = scratch().take(N * d);
  if (!scratch().enough()) return false;

  const auto value_of = [&](Index t) { return projected(call, b, t, call.heads + call.kv_heads + k); };
  const auto key_of = [&](Index t) {
    return plain_of(call, projected(call, b, t, call.heads + k), call.key_gain, plain);
  };
  std::memset(keys, 0, d * stride * sizeof(float));
  for (Index i = low; i < high; ++i) {
    if (i < span)
      turn(call, call.key + (lane * span + i) * d, i / C * C, rotated);
    else
      turn(call, key_of(i - span), i, rotated);
    for (Index c = 0; c < d; ++c) keys[c * stride + i - low] = rotated[c];
    std::memcpy(values + (i - low) * d, i < span ? call.value + (lane * span + i) * d : value_of(i - span),
                d * sizeof(float));
  }
  std::memset(values + seen * d, 0, (stride - seen) * d * sizeof(float));

  // What stays: the last chunks, each key rotated by its place in its chunk, and the first tokens of the stream.
  for (Index t = from; t < to; ++t) {
    const Index slot = span - T + t;
    const bool sink = before == 0 && t < N;
    if (slot < 0 && !sink) continue;
    turn(call, key_of(t), t % C, rotated);
    if (slot >= 0) {
      std::memcpy(call.new_key + (lane * span + slot) * d, rotated, d * sizeof(float));
      std::memcpy(call.new_value + (lane * span + slot) * d, value_of(t), d * sizeof(float));
    }
    if (sink) {
      std::memcpy(call.new_sink_key + (lane * N + t) * d, rotated, d * sizeof(float));
      std::memcpy(call.new_sink_value + (lane * N + t) * d, value_of(t), d * sizeof(float));
    }
  }
  if (part == 0) {
    if (T < span) {
      std::memcpy(call.new_key + lane * span * d, call.key + (lane * span + T) * d, (span - T) * d * sizeof(float));
      std::memcpy(call.new_value + lane * span * d, call.value + (lane * span + T) * d, (span - T) * d * sizeof(float));
    }
    if (before && N) {
      std::memcpy(call.new_sink_key + lane * N * d, call.sink_key + lane * N * d, N * d * sizeof(float));
      std::memcpy(call.new_sink_value + lane * N * d, call.sink_value + lane * N * d, N * d * sizeof(float));
    }
  }

  const float* sink_keys = call.sink_key + lane * N * d;
  if (before == 0) {  // they are among these tokens
    for (Index i = 0; i < N; ++i) turn(call, key_of(i), i, first_keys + i * d);
    sink_keys = first_keys;
  }
  for (Index g = 0; g < group; ++g) {
    const Index h = k * group + g;
    for (Index r = 0; r < rows; ++r) {
      const float* query = plain_of(call, projected(call, b, from + r, h), call.query_gain, plain);
      turn(call, query, call.positions + span + from + r, queries + r * d);
      const Index at = before + from + r, visible = most(least(at - W + 1, N), 0);
      if (!visible) continue;
      turn(call, query, call.positions + least(at, N + W - 1), rotated);
      score(visible, d, rotated, sink_keys, d, sinks + r * N);
    }
    product(rows, stride, d, {queries, d, 1}, keys, stride, scores, stride, nullptr, false);
    for (Index r = 0; r < rows; ++r) {
      float* row = scores + r * stride;
      const Index at = before + from + r, visible = most(least(at - W + 1, N), 0);
      const Index first = most(low, span + from + r - W + 1) - low, count = span + from + r + 1 - low - first;
      float top = largest_of(count, row + first);
      for (Index s = 0; s < visible; ++s) top = sinks[r * N + s] > top ? sinks[r * N + s] : top;
      map(count, row + first, [&](Vec x) { return exp(x - top); }, row + first);
      float total = sum_of(count, row + first);
      for (Index s = 0; s < visible; ++s) total += sinks[r * N + s] = exp1(sinks[r * N + s] - top);
      const float scale = 1.0f / total;
      map(count, row + first, [&](Vec x) { return x * scale; }, row + first);
      for (Index s = 0; s < visible; ++s) sinks[r * N + s] *= scale;
      std::memset(row, 0, first * sizeof(float));
      std::memset(row + first + count, 0, (stride - first - count) * sizeof(float));
    }
    product(rows, d, stride, {scores, stride, 1}, values, d, outputs, d, nullptr, false);
    for (Index r = 0; r < rows; ++r) {
      const Index at = before + from + r, visible = most(least(at - W + 1, N), 0);
      float* out = call.out + ((b * T + from + r) * call.heads + h) * d;
      std::memcpy(out, outputs + r * d, d * sizeof(float));
      for (Index s = 0; s < visible; ++s)
        add_values(1, d, sinks + r * N + s, before ? call.sink_value + (lane * N + s) * d : value_of(s), d, out);
    }
  }
  return true;
}

}  // namespace TITANS_ISA
