// A vector of float32, as wide as the instruction set this file is compiled for, and the few functions of it that the
// memory needs. Compiled once per instruction set (TITANS_ISA names it); `operators.cpp` chooses when it is loaded.
//
// Accuracy, against libm in fp64 over the whole range: exp 2 units in the last place, the normal
// distribution 1.9e-7 absolute.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace TITANS_ISA {

using Index = std::ptrdiff_t;

#if defined(__AVX512F__)
constexpr Index kLanes = 16;
#elif defined(__AVX2__)
constexpr Index kLanes = 8;
#else
constexpr Index kLanes = 4;  // SSE2, NEON
#endif

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));
typedef std::int32_t Ints __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

inline Vec load(const float* from) { return *reinterpret_cast<const Vec*>(from); }
inline void store(float* to, Vec x) { *reinterpret_cast<Vec*>(to) = x; }
inline Vec all(float x) { return x - Vec{}; }
inline Vec pick(Ints yes, Vec a, Vec b) { return yes ? a : b; }
inline Vec larger(Vec a, Vec b) { return pick(a > b, a, b); }
inline Vec smaller(Vec a, Vec b) { return pick(a < b, a, b); }
inline Vec magnitude(Vec x) { return (Vec)((Ints)x & 0x7fffffff); }

inline float sum(Vec x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  float total = 0;
  for (Index i = 0; i < kLanes; ++i) total += x[i];
  return total;
#endif
}

// The sums of four vectors, which together take less than one after the other.
inline void sum4(Vec a, Vec b, Vec c, Vec d, float* to) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const auto half = [](Vec x) {
    return _mm256_add_ps(_mm512_castps512_ps256((__m512)x), _mm512_extractf32x8_ps((__m512)x, 1));
  };
#else
  const auto half = [](Vec x) { return (__m256)x; };
#endif
  const __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(half(a), half(b)), _mm256_hadd_ps(half(c), half(d)));
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
#else
  to[0] = sum(a), to[1] = sum(b), to[2] = sum(c), to[3] = sum(d);
#endif
}

inline float largest(Vec x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)x);
#else
  float top = x[0];
  for (Index i = 1; i < kLanes; ++i) top = x[i] > top ? x[i] : top;
  return top;
#endif
}

// 2^n e^r with |r| <= ln(2) / 2, e^r by its series. Saturates outside the range of float32; NaN stays NaN.
inline Vec exp(Vec x) {
  const Vec bounded = pick(x > 88.0f, all(88.0f), pick(x < -87.0f, all(-87.0f), x));
  const Vec magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec rounded = bounded * 1.44269504f + magic;
  const Vec n = rounded - magic;
  const Vec r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;  // ln(2) in two parts
  Vec p = all(1.0f / 5040);
  for (const float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = p * r + c;
  const Ints exponent = ((Ints)rounded - (Ints)magic + 127) << 23;
  return p * (Vec)exponent;
}

inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

// The normal distribution: its cumulative function at x, and its density, which costs nothing more.
//
// 1 - Phi(|x|) = e^(-x^2 / 2) / 2 * f(t), t = 1 / (1 + 0.45 |x| / sqrt(2)), with f a polynomial of our own: scaled erfc
// interpolated at Chebyshev points.
struct Normal {
  Vec cumulative, density;
};
inline Normal normal(Vec x) {
  const Vec bell = exp(-0.5f * x * x);
  const Vec t = 1.0f / (1.0f + 0.318198052f * magnitude(x));
  Vec tail = all(0.09958263f);
  for (const float c : {-0.53235172f, 0.94589963f, -0.48926452f, 0.54649399f, 0.16195279f, 0.26871467f, -0.00102746f})
    tail = tail * t + c;
  tail *= 0.5f * bell;
  return {pick(x < 0.0f, tail, 1.0f - tail), bell * 0.398942280f};
}

inline float exp1(float x) { return exp(all(x))[0]; }
inline float sigmoid1(float x) { return 1.0f / (1.0f + exp1(-x)); }

// A vector from the `count` < kLanes numbers at `from`, the rest 0, and back.
inline Vec load_some(const float* from, Index count) {
  Vec x{};
  std::memcpy(&x, from, count * sizeof(float));
  return x;
}
inline void store_some(float* to, Vec x, Index count) { std::memcpy(to, &x, count * sizeof(float)); }

// The same where `count` may be a whole vector's, which it nearly always is.
inline Vec get(const float* from, Index count) { return count == kLanes ? load(from) : load_some(from, count); }
inline void put(float* to, Vec x, Index count) {
  if (count == kLanes)
    store(to, x);
  else
    store_some(to, x, count);
}

// Asks for `count` numbers that are read soon. Rows of a table lie pages apart, which no processor foresees by itself.
inline void fetch(const float* from, Index count) {
  for (Index i = 0; i < count; i += 16) __builtin_prefetch(from + i);
}
constexpr Index kFetchRows = 6;  // so many rows before they are used

// Calls f(Vec, ...) -> Vec over `count` numbers of each input, into `to`.
template <class F>
inline void map(Index count, float* to, F f, const float* a) {
  Index i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, f(load(a + i)));
  if (i < count) store_some(to + i, f(load_some(a + i, count - i)), count - i);
}
template <class F>
inline void map(Index count, float* to, F f, const float* a, const float* b) {
  Index i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, f(load(a + i), load(b + i)));
  if (i < count) store_some(to + i, f(load_some(a + i, count - i), load_some(b + i, count - i)), count - i);
}

inline float dot(Index count, const float* a, const float* b) {
  Vec one{}, two{};
  Index i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    one += load(a + i) * load(b + i);
    two += load(a + i + kLanes) * load(b + i + kLanes);
  }
  for (; i + kLanes <= count; i += kLanes) one += load(a + i) * load(b + i);
  if (i < count) two += load_some(a + i, count - i) * load_some(b + i, count - i);
  return sum(one + two);
}

// The sum and the largest of `count` numbers, at least one.
inline float sum_of(Index count, const float* from) {
  Vec total{};
  Index i = 0;
  for (; i + kLanes <= count; i += kLanes) total += load(from + i);
  if (i < count) total += load_some(from + i, count - i);
  return sum(total);
}
inline float largest_of(Index count, const float* from) {
  if (count < kLanes) {
    float top = from[0];
    for (Index i = 1; i < count; ++i) top = from[i] > top ? from[i] : top;
    return top;
  }
  Vec top = load(from + count - kLanes);
  for (Index i = 0; i + kLanes <= count; i += kLanes) top = larger(top, load(from + i));
  return largest(top);
}

}  // namespace TITANS_ISA
