// Matrix products of the sizes a memory has: tens to hundreds of rows and columns that lie in the first two caches, so
// nothing is packed. A block of 6 rows by 2 vectors is kept in registers, which is what sixteen of them hold; by 4
// where there are thirty-two.
#pragma once
#include <type_traits>

#include "simd.h"

namespace TITANS_ISA {

// A matrix that is read by row and column steps, so that a transposed left operand costs nothing.
struct Left {
  const float* at;
  Index row, column;
};

template <int ROWS, int VECTORS>
inline void block(Index inner, Left a, const float* b, Index b_row, float* c, Index c_row, const float* scale,
                  bool add) {
  Vec sums[ROWS][VECTORS] = {};
  for (Index k = 0; k < inner; ++k) {
    Vec row[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) row[v] = load(b + k * b_row + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const Vec x = all(a.at[r * a.row + k * a.column]);
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) sums[r][v] += x * row[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) {
      float* to = c + r * c_row + v * kLanes;
      Vec x = sums[r][v];
      if (scale) x *= scale[r];
      store(to, add ? load(to) + x : x);
    }
}

// The columns that do not fill a vector.
inline void narrow(Index rows, Index columns, Index inner, Left a, const float* b, Index b_row, float* c, Index c_row,
                   const float* scale, bool add) {
  for (Index r = 0; r < rows; ++r) {
    Vec sums{};
    for (Index k = 0; k < inner; ++k) sums += a.at[r * a.row + k * a.column] * load_some(b + k * b_row, columns);
    if (scale) sums *= scale[r];
    if (add) sums += load_some(c + r * c_row, columns);
    store_some(c + r * c_row, sums, columns);
  }
}

template <int VECTORS>
inline void column_block(Index rows, Index inner, Left a, const float* b, Index b_row, float* c, Index c_row,
                         const float* scale, bool add) {
  Index r = 0;
  const auto next = [&](auto size) {
    constexpr int ROWS = decltype(size)::value;
    block<ROWS, VECTORS>(inner, {a.at + r * a.row, a.row, a.column}, b, b_row, c + r * c_row, c_row,
                         scale ? scale + r : nullptr, add);
    r += ROWS;
  };
  while (rows - r >= 6) next(std::integral_constant<int, 6>());
  if (rows - r >= 4) next(std::integral_constant<int, 4>());
  if (rows - r >= 2) next(std::integral_constant<int, 2>());
  if (rows - r >= 1) next(std::integral_constant<int, 1>());
}

// c = (c if add) + scale * (a b), `scale` one factor per row or null: a `[rows, inner]`, b `[inner, columns]`.
inline void product(Index rows, Index columns, Index inner, Left a, const float* b, Index b_row, float* c, Index c_row,
                    const float* scale, bool add) {
  Index n = 0;
  if (rows == 1) {  // one row has no other use for the registers than more columns
    for (; n + 8 * kLanes <= columns; n += 8 * kLanes) block<1, 8>(inner, a, b + n, b_row, c + n, c_row, scale, add);
    for (; n + 4 * kLanes <= columns; n += 4 * kLanes) block<1, 4>(inner, a, b + n, b_row, c + n, c_row, scale, add);
  }
  if constexpr (kLanes == 16)
    for (; n + 4 * kLanes <= columns; n += 4 * kLanes)
      column_block<4>(rows, inner, a, b + n, b_row, c + n, c_row, scale, add);
  for (; n + 2 * kLanes <= columns; n += 2 * kLanes)
    column_block<2>(rows, inner, a, b + n, b_row, c + n, c_row, scale, add);
  for (; n + kLanes <= columns; n += kLanes) column_block<1>(rows, inner, a, b + n, b_row, c + n, c_row, scale, add);
  if (n < columns) narrow(rows, columns - n, inner, a, b + n, b_row, c + n, c_row, scale, add);
}

// to `[columns, rows]` (rows of length to_row) = the transpose of from `[rows, columns]`.
inline void transpose(Index rows, Index columns, const float* from, Index from_row, float* to, Index to_row) {
  constexpr Index kTile = 8;
  for (Index r = 0; r < rows; r += kTile)
    for (Index c = 0; c < columns; c += kTile) {
      const Index last_row = r + kTile < rows ? r + kTile : rows,
                  last_column = c + kTile < columns ? c + kTile : columns;
      for (Index j = c; j < last_column; ++j)
        for (Index i = r; i < last_row; ++i) to[j * to_row + i] = from[i * from_row + j];
    }
}

}  // namespace TITANS_ISA
