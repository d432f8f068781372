// Where the operands and results of sm_90's warpgroup products lie: pure functions, so that the
// host can hold them against the instruction's definition.
//
// Shared memory holds 16-bit matrices as atoms of 64 elements (128 bytes) by some number of stored
// rows; an atom begins at a multiple of 1024 bytes. The 128-byte swizzle exchanges 16-byte chunks
// within a row: chunk c of row r lies at c ^ (r % 8). The tensor copy engine writes so, the product
// reads so, and a quarter-warp that writes chunk c of eight successive rows meets every bank once.
//
// A stored row is either a row of the operand (depth runs along it: "K-major") or one step of its
// depth (the operand's rows run along it: "MN-major"). The bytes are the same; only the descriptor
// and the instruction's transpose bit say which. So a decoded tile [rows of W, 64 columns of W]
// serves x·Wᵀ as a K-major operand and dy·W as an MN-major one.

#ifndef QLORA_KERNELS_CUDA_HOPPER_LAYOUT_H_
#define QLORA_KERNELS_CUDA_HOPPER_LAYOUT_H_

#include <cstdint>

namespace qlora::kernels::cuda::hopper {

inline constexpr int kAtomColumns = 64;  // 16-bit elements of a stored row
inline constexpr int kRowBytes = 128;
inline constexpr int kChunkBytes = 16;
inline constexpr int kSwizzleRows = 8;
inline constexpr int kAtomAlignment = kSwizzleRows * kRowBytes;

// Byte offset of 16-byte chunk `chunk` of stored row `row`.
constexpr uint32_t ChunkOffset(int row, int chunk) {
  return uint32_t(row * kRowBytes + ((chunk ^ (row % kSwizzleRows)) * kChunkBytes));
}
// Byte offset of an element of the atom's stored row.
constexpr uint32_t ElementOffset(int row, int column) {
  return ChunkOffset(row, column / 8) + uint32_t(column % 8 * 2);
}

// ---- The descriptor of an operand in shared memory

inline constexpr uint64_t kSwizzle128 = 1;  // of the two highest bits

// Bits 0-13: address, 16-29: leading dimension's byte offset, 32-45: stride dimension's byte
// offset, all in units of 16 bytes; 62-63: swizzle. Bits 49-51 are 0, since atoms are aligned.
constexpr uint64_t Descriptor(uint32_t address, uint32_t leading_bytes, uint32_t stride_bytes) {
  return uint64_t(address >> 4 & 0x3fff) | uint64_t(leading_bytes >> 4 & 0x3fff) << 16 |
         uint64_t(stride_bytes >> 4 & 0x3fff) << 32 | kSwizzle128 << 62;
}

// Depth of one instruction.
inline constexpr int kInstructionDepth = 16;
// Operand rows of one warpgroup's instruction, on the weight's side.
inline constexpr int kInstructionRows = 64;

// K-major: groups of eight operand rows follow each other at the stride; the leading offset is not
// looked at. The next 16 of depth begin 32 bytes on, within the swizzled row.
constexpr uint64_t KMajorDescriptor(uint32_t address) {
  return Descriptor(address, kChunkBytes, kAtomAlignment);
}
inline constexpr int kKMajorStepBytes = kInstructionDepth * 2;

// MN-major: groups of eight steps of depth follow each other at the stride, groups of 64 operand
// rows at the leading offset (an instruction has one such group on the weight's side). The next 16
// of depth begin 16 stored rows on.
constexpr uint64_t MnMajorDescriptor(uint32_t address, uint32_t atom_bytes) {
  return Descriptor(address, atom_bytes, kAtomAlignment);
}
inline constexpr int kMnMajorStepBytes = kInstructionDepth * kRowBytes;

// ---- Results: m64nNk16, fp32

// Which result of [64, N] is register i of a thread (0..127) of the warpgroup.
struct Place {
  int row, column;
};
constexpr Place ResultPlace(int thread, int i) {
  const int warp = thread / 32, lane = thread % 32;
  return {16 * warp + lane / 4 + 8 * (i / 2 % 2), 8 * (i / 4) + 2 * (lane % 4) + i % 2};
}

// ---- The tile of a weight that one step takes

inline constexpr int kTileRows = 128;  // operand rows of a tile on the weight's side
inline constexpr int kTileDepth = 64;
inline constexpr int kDecoders = 128;  // threads, one block of 64 weights each
inline constexpr uint32_t kAtomBytes = kAtomColumns * kRowBytes;
inline constexpr uint32_t kWeightTileBytes = 2 * kAtomBytes;

// Which 64 weights thread `decoder` decodes: row and column block of W. Forward, the tile is 128
// rows of W (from tile_row0) by one column block (`step`); backward, 64 rows of W (those of `step`)
// by two column blocks (from tile_row0 / 64). Either way its 64 weights are stored row `decoder` of
// the tile, which is its chunks' place.
struct WeightBlock {
  int64_t row, column_block;
};
template <bool kBackward>
constexpr WeightBlock BlockOf(int decoder, int64_t tile_row0, int64_t step) {
  if (kBackward) {
    return {step * kTileDepth + decoder % kAtomColumns,
            tile_row0 / kAtomColumns + decoder / kAtomColumns};
  }
  return {tile_row0 + decoder, step};
}

// Warpgroup `group` (0, 1) multiplies operand rows [64·group, 64·group + 64) of the tile: in both
// directions the second half of its bytes. Its descriptor for the instruction of depth
// [16·part, 16·part + 16).
template <bool kBackward>
constexpr uint64_t WeightDescriptor(uint32_t tile, int group, int part) {
  const uint32_t half = tile + uint32_t(group) * kAtomBytes;
  return kBackward ? MnMajorDescriptor(half + uint32_t(part * kMnMajorStepBytes), kAtomBytes)
                   : KMajorDescriptor(half + uint32_t(part * kKMajorStepBytes));
}
// Of the tokens' tile: K-major in both directions.
constexpr uint64_t TokenDescriptor(uint32_t tile, int part) {
  return KMajorDescriptor(tile + uint32_t(part * kKMajorStepBytes));
}

// ---- The order of tiles

// Tiles are walked in groups of a few token tiles, all of the weight's tiles within a group, so
// that what runs at one time shares tokens in the second-level cache and reads each weight once.
inline constexpr int64_t kRasterTokens = 8;

struct TileIndex {
  int64_t weight, token;
};
constexpr TileIndex TileAt(int64_t i, int64_t weight_tiles, int64_t token_tiles) {
  const int64_t group_tiles = kRasterTokens * weight_tiles;
  const int64_t first = i / group_tiles * kRasterTokens;
  const int64_t left = token_tiles - first;
  const int64_t width = left < kRasterTokens ? left : kRasterTokens;
  const int64_t within = i % group_tiles;
  return {within / width, first + within % width};
}

}  // namespace qlora::kernels::cuda::hopper

#endif  // QLORA_KERNELS_CUDA_HOPPER_LAYOUT_H_
