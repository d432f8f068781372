// What the attention kernels share: which document and tile a block has, which keys a query sees,
// tiles of heads in shared memory.

#ifndef QLORA_KERNELS_CUDA_ATTENTION_TILES_H_
#define QLORA_KERNELS_CUDA_ATTENTION_TILES_H_

#include <cstdint>

#include "kernels/cuda/elements.h"
#include "kernels/ops/attention.h"

namespace qlora::kernels::cuda {

// One document of the table. Query i stands at key position i + shift.
struct DocumentBounds {
  int64_t first_query, first_key;
  int queries, keys;
  QLORA_DEVICE int Shift() const { return keys - queries; }
};

struct DocumentTable {
  const int32_t* rows;
  int64_t pitch;
  const int32_t* count;
  int capacity;
};
inline DocumentTable TableOf(const ConstTensor& documents, const ConstTensor& count) {
  return {static_cast<const int32_t*>(documents.data), documents.pitch,
          static_cast<const int32_t*>(count.data), int(documents.rows)};
}

// Blocks along the first grid dimension are tiles of `tile` rows of the documents, one after
// another. How many there are only the device knows; at most TileCapacity.
inline int64_t TileCapacity(int64_t rows, const ConstTensor& documents, int tile) {
  return CeilDiv(rows, tile) + documents.rows;
}
struct DocumentTile {
  DocumentBounds document;
  int first;  // row of the document that the tile begins with
  bool exists;
};
QLORA_DEVICE DocumentTile FindTile(const DocumentTable& table, int64_t block, int tile,
                                   bool of_keys) {
  int count = *table.count;
  if (count > table.capacity) count = table.capacity;
  for (int d = 0; d < count; ++d) {
    const int32_t* row = table.rows + d * table.pitch;
    const int rows = of_keys ? row[3] : row[1], tiles = (rows + tile - 1) / tile;
    if (block < tiles) return {{row[0], row[2], row[1], row[3]}, int(block) * tile, true};
    block -= tiles;
  }
  return {{0, 0, 0, 0}, 0, false};
}

// Which pairs of a document's query and key belong together.
struct Visibility {
  int shift, window, queries, keys;
  QLORA_DEVICE bool Sees(int query, int key) const {
    const int position = query + shift;
    return query < queries && key < keys && key <= position &&
           (window == 0 || key > position - window);
  }
  // The first key that query `query` sees, and one behind the last.
  QLORA_DEVICE int FirstKey(int query) const {
    const int first = query + shift - window + 1;
    return window == 0 || first < 0 ? 0 : first;
  }
  QLORA_DEVICE int EndKey(int query) const {
    const int end = query + shift + 1;
    return end < keys ? end : keys;
  }
  // The first query that sees `key`, and one behind the last.
  QLORA_DEVICE int FirstQuery(int key) const { return key - shift < 0 ? 0 : key - shift; }
  QLORA_DEVICE int EndQuery(int key) const {
    const int64_t end = int64_t{key} + window - shift;
    return window == 0 || end > queries ? queries : int(end);
  }
};
QLORA_DEVICE Visibility VisibilityOf(const DocumentBounds& d, int64_t window) {
  // Positions are 32-bit; no window can be longer than a document.
  return {d.Shift(), int(window < (1 << 30) ? window : 1 << 30), d.queries, d.keys};
}

// z from q·k: scaled, and capped where there is a cap.
QLORA_DEVICE float Logit(const AttentionShape& shape, float dot) {
  const float z = dot * shape.scale;
  return shape.softcap > 0 ? shape.softcap * tanhf(z / shape.softcap) : z;
}
// dz/d(scaled dot) at logit z.
QLORA_DEVICE float LogitSlope(const AttentionShape& shape, float z) {
  if (!(shape.softcap > 0)) return 1.0f;
  const float t = z / shape.softcap;
  return 1.0f - t * t;
}

// A tile of one head in shared memory: rows of kD columns, zeros behind the head's size.
template <int kD>
inline constexpr int kTilePitch = kD + 8;
template <int kD>
constexpr int TileElements(int rows) {
  return rows * kTilePitch<kD>;
}

// Starts to fill `rows` rows of a tile from a view: head rows [first, end) beginning at column
// `column`; zeros behind `end`. `vector`: the view's rows and heads begin at multiples of 16 bytes.
template <int kD>
QLORA_DEVICE void FillHeadTile(const ConstTensor& from, int64_t first, int64_t end, int64_t column,
                               int head_size, bool vector, int rows, gpu::Shared<uint16_t> tile) {
  for (int i = gpu::ThreadX(); i < rows * (kD / 8); i += gpu::ThreadCount()) {
    const int r = i / (kD / 8), c = i % (kD / 8) * 8;
    const uint16_t* row =
        static_cast<const uint16_t*>(from.data) + (first + r) * from.pitch + column;
    const bool live = first + r < end;
    const gpu::Shared<uint16_t> to = tile + (r * kTilePitch<kD> + c);
    if (vector) {
      const bool valid = live && c < head_size;
      gpu::CopyAsync16(to, valid ? row + c : from.data, valid);
    } else {
      for (int j = 0; j < 8; ++j) {
        to[j] = live && c + j < head_size ? row[c + j] : uint16_t{0};
      }
    }
  }
}
// All of a thread's copies have arrived; a barrier makes them everybody's.
QLORA_DEVICE void FinishFill() {
  gpu::CopyAsyncCommit();
  gpu::CopyAsyncWait<0>();
}
inline bool HeadsAreVectors(const ConstTensor& t, int64_t head_size) {
  return IsAligned(t, 16) && head_size % 8 == 0;
}

// Calls f with the padded head size as a compile-time number.
template <int kValue>
struct IntTag {
  static constexpr int value = kValue;
};
template <class F>
bool DispatchHeadSize(int64_t head_size, F&& f) {
  if (head_size <= 64) {
    f(IntTag<64>());
  } else if (head_size <= 128) {
    f(IntTag<128>());
  } else if (head_size <= 256) {
    f(IntTag<256>());
  } else {
    return false;
  }
  return true;
}

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_ATTENTION_TILES_H_
