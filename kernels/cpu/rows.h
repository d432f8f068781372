// How the elementwise ops cut their rows into tiles.

#ifndef QLORA_KERNELS_CPU_ROWS_H_
#define QLORA_KERNELS_CPU_ROWS_H_

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/thread_pool.h"
#include "kernels/tensor.h"

namespace qlora::kernels::cpu {

// Elements of a tile: some ten microseconds of work, a hundred times what taking it from the queue
// costs.
inline constexpr int64_t kTileElements = 16384;

// How many rows of a view with `rows` rows hold data. Read when an op starts.
inline int64_t LiveRowCount(const LiveRows& live_rows, int64_t rows) {
  return live_rows ? std::clamp<int64_t>(live_rows.Scalar<int32_t>(), 0, rows) : rows;
}

// Calls f(begin, end) for stretches of [0, count) that hold at most `per_tile`.
template <class F>
void ForTiles(ThreadPool& pool, int64_t count, int64_t per_tile, F&& f) {
  pool.Run((count + per_tile - 1) / per_tile, [&](int64_t tile, uint8_t*) {
    f(tile * per_tile, std::min(count, (tile + 1) * per_tile));
  });
}

// The same for rows of `cols` elements.
template <class F>
void ForRowTiles(ThreadPool& pool, int64_t rows, int64_t cols, F&& f) {
  ForTiles(pool, rows, std::max<int64_t>(1, kTileElements / std::max<int64_t>(1, cols)), f);
}

}  // namespace qlora::kernels::cpu

#endif  // QLORA_KERNELS_CPU_ROWS_H_
