// Tiles of q, k, v and dout in shared memory, and products of them on the tensor cores: what the
// kernels of attention with mma.sync have in common.
//
// Fragments are those of ptx.cuh; an accumulator of 16 kM rows and 8 kN columns is c[kM][kN][4].
#pragma once

#include "cuda/gpu.cuh"
#include "cuda/ptx.cuh"

namespace llmc::cuda::attention {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr float kLog2E = 1.4426950408889634f;

__device__ inline int Lane() { return threadIdx.x % kWarpSize; }
__device__ inline int Warp() { return threadIdx.x / kWarpSize; }

// Rows of numbers in pieces of 16 bytes. The pieces of a row are permuted, by its number, so that
// the same piece of eight rows one after another lies in different banks: ldmatrix reads it, and
// the warp stores fragments, at full speed.
template <typename T, int kRows, int kColumns>
struct alignas(1024) Tile {
  static constexpr int kPiece = Vec<T>::kSize;
  static constexpr int kPieces = kColumns / kPiece;
  // Rows that share 128 bytes, all banks, need no permutation among themselves.
  static constexpr int kShift = kPieces >= 8 ? 0 : 1;
  static constexpr int kMask = (kPieces >= 8 ? 8 : kPieces) - 1;
  static_assert(kPieces >= 4 && kPieces % 4 == 0, "rows of 64 bytes or a multiple of 128");

  T at[kRows * kColumns];

  __device__ T* Piece(int row, int piece) {
    return at + row * kColumns + (piece ^ (row >> kShift & kMask)) * kPiece;
  }
};

// Starts to copy rows [first, first + kRows) of a matrix of `rows` rows, `stride` numbers apart;
// zeros for rows that it lacks. By all threads of the block.
template <typename T, int kRows, int kColumns>
__device__ inline void CopyRows(Tile<T, kRows, kColumns>& to, const T* from, int64_t stride,
                                int64_t first, int64_t rows) {
  using To = Tile<T, kRows, kColumns>;
  static_assert(kRows * To::kPieces % kThreads == 0, "whole turns");
  int row = threadIdx.x / To::kPieces, piece = threadIdx.x % To::kPieces;
  constexpr int kStep = kThreads / To::kPieces;
  from += (first + row) * stride + piece * To::kPiece;
#pragma unroll
  for (int i = 0; i < kRows; i += kStep) {
    bool valid = first + row + i < rows;
    ptx::CopyAsync16(to.Piece(row + i, piece), from + (valid ? i * stride : -row * stride), valid);
  }
}

// Writes rows [row, row + 16 kM) of a tile to rows of a matrix, without those it lacks. By a warp.
template <int kM, typename T, int kRows, int kColumns>
__device__ inline void WriteRows(Tile<T, kRows, kColumns>& from, int row, T* to, int64_t stride,
                                 int64_t first, int64_t rows) {
  constexpr int kPieces = Tile<T, kRows, kColumns>::kPieces;
#pragma unroll
  for (int i = Lane(); i < 16 * kM * kPieces; i += kWarpSize) {
    int r = row + i / kPieces, piece = i % kPieces;
    if (first + r < rows)
      Vec<T>::Load(from.Piece(r, piece)).Store(to + (first + r) * stride + piece * Vec<T>::kSize);
  }
}

// Stores an accumulator, times `scale`, as rows from `row` and pieces from `piece` on. By a warp.
template <typename T, int kRows, int kColumns, int kM, int kN>
__device__ inline void StoreAccumulator(Tile<T, kRows, kColumns>& tile, int row,
                                        const float (&c)[kM][kN][4], float scale,
                                        int piece = 0) {
  int g = Lane() / 4, t = Lane() % 4;
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* pair = &c[m][n][2 * half];
        ptx::StoreShared(tile.Piece(row + 16 * m + 8 * half + g, piece + n) + 2 * t,
                         ptx::Pack<T>(pair[0] * scale, pair[1] * scale));
      }
}

// a: rows [row, row + 16), columns [16 k, 16 k + 16) of the tile.
template <typename Tile>
__device__ inline void LoadA(uint32_t (&a)[4], Tile& tile, int row, int k) {
  ptx::LoadMatrix4(a, tile.Piece(row + Lane() % 16, 2 * k + Lane() / 16));
}

// a: the transpose of rows [16 k, 16 k + 16), columns [column, column + 16) of the tile.
template <typename Tile>
__device__ inline void LoadATransposed(uint32_t (&a)[4], Tile& tile, int column, int k) {
  ptx::LoadMatrix4Transposed(
      a, tile.Piece(16 * k + Lane() % 8 + Lane() / 16 * 8, column / 8 + Lane() / 8 % 2));
}

// c += a b, b the transpose of rows [row, row + 8 kN), columns [16 k, 16 k + 16) of the tile.
template <typename T, int kM, int kN, typename Tile>
__device__ inline void AddTimesTransposed(float (&c)[kM][kN][4], const uint32_t (&a)[kM][4],
                                          Tile& tile, int row, int k) {
#pragma unroll
  for (int n = 0; n < kN; n += 2) {
    uint32_t b[4];
    ptx::LoadMatrix4(b, tile.Piece(row + 8 * n + Lane() % 8 + Lane() / 16 * 8,
                                   2 * k + Lane() / 8 % 2));
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      ptx::Mma<T>(c[m][n], a[m], b[0], b[1]);
      ptx::Mma<T>(c[m][n + 1], a[m], b[2], b[3]);
    }
  }
}

// c += a b, b rows [row, row + 16), columns [column, column + 8 kN) of the tile.
template <typename T, int kM, int kN, typename Tile>
__device__ inline void AddTimes(float (&c)[kM][kN][4], const uint32_t (&a)[kM][4], Tile& tile,
                                int row, int column) {
#pragma unroll
  for (int n = 0; n < kN; n += 2) {
    uint32_t b[4];
    ptx::LoadMatrix4Transposed(b,
                               tile.Piece(row + Lane() % 16, column / 8 + n + Lane() / 16));
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      ptx::Mma<T>(c[m][n], a[m], b[0], b[1]);
      ptx::Mma<T>(c[m][n + 1], a[m], b[2], b[3]);
    }
  }
}

// Columns [16 k, 16 k + 16) of an accumulator as the left operand of the next product: the
// registers of the one are those of the other, rounded.
template <typename T, int kM, int kN>
__device__ inline void ToA(uint32_t (&a)[kM][4], const float (&c)[kM][kN][4], int k) {
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* pair = &c[m][2 * k + i / 2][2 * (i % 2)];
      a[m][i] = ptx::Pack<T>(pair[0], pair[1]);
    }
}

template <int kM, int kN>
__device__ inline void SetZero(float (&c)[kM][kN][4]) {
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) c[m][n][i] = 0;
}

// Row and column in an accumulator of number i of c[m][n] in this lane.
__device__ inline int RowOf(int m, int i) { return 16 * m + i / 2 * 8 + Lane() / 4; }
__device__ inline int ColumnOf(int n, int i) { return 8 * n + Lane() % 4 * 2 + i % 2; }

// One head of one sequence of a packed tensor: q, k or v (`part` 0, 1, 2) of qkv, or of dqkv.
template <typename Pointer>
struct Head {
  Pointer data;
  int64_t stride;
};
template <typename Pointer>
__device__ inline Head<Pointer> PackedHead(Pointer qkv, const AttentionSizes& sizes, int64_t b,
                                           int64_t h, int part) {
  int64_t C = sizes.NH * sizes.HS;
  return {qkv + b * sizes.T * 3 * C + part * C + h * sizes.HS, 3 * C};
}
// The same of out or dout.
template <typename Pointer>
__device__ inline Head<Pointer> MergedHead(Pointer out, const AttentionSizes& sizes, int64_t b,
                                           int64_t h) {
  int64_t C = sizes.NH * sizes.HS;
  return {out + b * sizes.T * C + h * sizes.HS, C};
}

}  // namespace llmc::cuda::attention
