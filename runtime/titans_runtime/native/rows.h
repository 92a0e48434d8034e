// What attention does with rows: scores with keys, sums of values, rotations.
#pragma once
#include "simd.h"

namespace TITANS_ISA {

// Pairs (x[i], x[i + d / 2]) turned by the angles of one place.
inline void rotate(Index count, const float* x, const float* cosine, const float* sine, float* to) {
  const Index half = count / 2;
  for (Index i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    to[i] = a * cosine[i] - b * sine[i];
    to[i + half] = b * cosine[i + half] + a * sine[i + half];
  }
}

// Scores of one query with `count` keys that are `row` numbers apart.
inline void score(Index count, Index width, const float* query, const float* keys, Index row, float* to) {
  Index i = 0;
  for (; width % kLanes == 0 && i + 4 <= count; i += 4) {
    const float* from = keys + i * row;
    if (i + 4 + kFetchRows < count)
      for (Index r = 0; r < 4; ++r) fetch(from + (kFetchRows + r) * row, width);
    Vec sums[4] = {};
    for (Index c = 0; c < width; c += kLanes) {
      const Vec part = load(query + c);
#pragma GCC unroll 4
      for (Index r = 0; r < 4; ++r) sums[r] += part * load(from + r * row + c);
    }
    sum4(sums[0], sums[1], sums[2], sums[3], to + i);
  }
  for (; i < count; ++i) {
    if (i + kFetchRows < count) fetch(keys + (i + kFetchRows) * row, width);
    to[i] = dot(width, query, keys + i * row);
  }
}

// Adds to `to` the sum of `count` rows of values, each times its weight.
inline void add_values(Index count, Index width, const float* weights, const float* values, Index row, float* to) {
  Index done = 0;
  for (; done + 4 * kLanes <= width; done += 4 * kLanes) {  // as many columns as stay in registers
    Vec sums[4];
    for (int v = 0; v < 4; ++v) sums[v] = load(to + done + v * kLanes);
    for (Index i = 0; i < count; ++i) {
      const float* from = values + i * row + done;
      if (i + kFetchRows < count) fetch(from + kFetchRows * row, 4 * kLanes);
      const Vec weight = all(weights[i]);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) sums[v] += weight * load(from + v * kLanes);
    }
    for (int v = 0; v < 4; ++v) store(to + done + v * kLanes, sums[v]);
  }
  for (Index i = 0; i < count && done < width; ++i) {
    if (i + kFetchRows < count) fetch(values + (i + kFetchRows) * row + done, width - done);
    const Vec weight = all(weights[i]);
    map(
        width - done, to + done, [&](Vec sum, Vec value) { return sum + weight * value; }, to + done,
        values + i * row + done);
  }
}

// Scores to weights that add up to 1.
inline void softmax(Index count, float* scores) {
  const float top = largest_of(count, scores);
  map(count, scores, [&](Vec x) { return exp(x - top); }, scores);
  const float total = sum_of(count, scores);
  map(count, scores, [&](Vec x) { return x / total; }, scores);
}

}  // namespace TITANS_ISA
