// One head's attention of one new token: `titans_core.attention`, `extend` of both kinds, for a single token.
#include <cmath>

#include "attention.h"
#include "kernels.h"
#include "rows.h"
#include "scratch.h"
#include "simd.h"

namespace TITANS_ISA {
namespace {

constexpr float kEpsilon = 1e-6f;

// x / rms(x)
void normalise(Index count, const float* x, float* to) {
  const float rate = 1.0f / std::sqrt(dot(count, x, x) / static_cast<float>(count) + kEpsilon);
  map(count, to, [&](Vec v) { return v * rate; }, x);
}

}  // namespace

bool attention(const AttentionCall& call, Index b, Index h) {
  const Index d = call.width, C = call.chunk, span = call.past * C, lane = b * call.heads + h;
  const Index lanes = call.batch * call.heads, place = call.position[b] % C, started = call.position[b] - place;
  const Index most = call.persistent + span + call.kinds * (C + 1);
  if (!scratch().need(Count{3 + call.kinds} * (d + 16) + most + 64)) return false;
  float *plain = scratch().take(d), *rotated = scratch().take(d), *scores = scratch().take(most),
        *key = scratch().take(d);
  if (!scratch().enough()) return false;

  normalise(d, call.queries + b * call.queries_row + h * d, plain);
  const auto rotate_query = [&](Index distance) {
    const Index at = (call.positions + distance) * d;
    rotate(d, plain, call.cosine + at, call.sine + at, rotated);
  };

  // Whichever lies outside the window is the older end of a source, so a source is what is seen of it.
  const Index oldest = call.window ? (place + 1 > call.window ? place + 1 - call.window : 0) : 0;
  const Index rows = place - oldest;
  Index reach = call.window ? call.window - 1 - place : 0;  // slots of the past, from its newer end
  reach = reach < 0 ? 0 : reach > started ? started : reach;
  reach = reach > span ? span : reach;

  Index count = 0;
  if (call.persistent) {
    score(call.persistent, d, plain, call.persistent_key + h * call.persistent * d, d, scores);
    count = call.persistent;
  }
  const float *past_key = nullptr, *past_value = nullptr;
  if (reach) {
    const Index first = span - reach;
    past_key = call.key + lane * span * d;
    past_value = call.value + lane * span * d;
    for (Index c = first / C; c < call.past; ++c) {  // a query is rotated once for each chunk
      const Index from = c * C < first ? first : c * C;
      rotate_query(place + (call.past - c) * C);
      score((c + 1) * C - from, d, rotated, past_key + from * d, d, scores + count);
      count += (c + 1) * C - from;
    }
  }
  rotate_query(place);
  for (int kind = 0; kind < call.kinds; ++kind) {
    const float* keys_values = call.keys_values[kind] + b * call.keys_values_row + h * d;
    normalise(d, keys_values, key);
    float* own = call.new_key[kind] + lane * d;
    rotate(d, key, call.cosine + place * d, call.sine + place * d, own);
    std::memcpy(call.new_value[kind] + lane * d, keys_values + call.value_offset, d * sizeof(float));
    score(rows, d, rotated, call.row_key[kind] + (oldest * lanes + lane) * d, lanes * d, scores + count);
    scores[count + rows] = dot(d, rotated, own);
    count += rows + 1;
  }

  softmax(count, scores);

  float* out = call.out + lane * d;
  std::memset(out, 0, d * sizeof(float));
  const float* weights = scores;
  if (call.persistent) {
    add_values(call.persistent, d, weights, call.persistent_value + h * call.persistent * d, d, out);
    weights += call.persistent;
  }
  if (reach) {
    add_values(reach, d, weights, past_value + (span - reach) * d, d, out);
    weights += reach;
  }
  for (int kind = 0; kind < call.kinds; ++kind) {
    add_values(rows, d, weights, call.row_value[kind] + (oldest * lanes + lane) * d, lanes * d, out);
    add_values(1, d, weights + rows, call.new_value[kind] + lane * d, d, out);
    weights += rows + 1;
  }
  return true;
}

}  // namespace TITANS_ISA
