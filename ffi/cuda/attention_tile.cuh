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

__device__ inline int Lane() { return threadIdx.x % kWarpSize; }
__device__ inline int Warp() { return threadIdx.x / kWarpSize; }

// Row and column in an accumulator of number i of c[m][n] in this lane.
__device__ inline int RowOf(int m, int i) { return 16 * m + i / 2 * 8 + Lane() / 4; }
__device__ inline int ColumnOf(int n, int i) { return 8 * n + Lane() % 4 * 2 + i % 2; }

// Rows of numbers in pieces of 16 bytes. The pieces of a row are permuted, by its number, so that
// the same piece of eight rows one after another lies in different banks: ldmatrix reads it, and
// a warp stores fragments, at full speed.
template <typename T, int kRows, int kColumns>
struct alignas(1024) Tile {
  static constexpr int kPieces = kColumns * sizeof(T) / 16;
  static constexpr int kRowBytes = kColumns * sizeof(T);
  // Rows that share 128 bytes, all banks, need no permutation among themselves.
  static constexpr int kShift = kPieces >= 8 ? 0 : 1;
  static constexpr int kMask = (kPieces >= 8 ? 8 : kPieces) - 1;
  static_assert(kPieces >= 4 && (kPieces & (kPieces - 1)) == 0, "4 pieces, 8 or 16");

  T at[kRows * kColumns];

  __device__ static int Offset(int row, int piece) {
    return row * kRowBytes + (piece ^ (row >> kShift & kMask)) * 16;
  }
  __device__ T* Piece(int row, int piece) { return at + Offset(row, piece) / sizeof(T); }
};

// Addresses of pieces of tiles of rows as long as those of `Tile`, for this lane. What is known at
// run time only is added once, and not to each address: a tile, a row and a piece that are
// constants cost an exclusive or and an offset in the instruction.
template <typename Tile>
class Lanes {
 public:
  // shared: where the memory of the block begins.
  __device__ explicit Lanes(const void* shared) : origin_(static_cast<const char*>(shared)) {
    int lane = Lane();
    uint32_t start = ptx::SharedAddress(shared);
    down_ = start + Tile::Offset(lane % 16, lane / 16);
    across_ = start + Tile::Offset(lane % 8 + lane / 16 * 8, lane / 8 % 2);
    pair_ = start + Tile::Offset(lane / 4, 0) + lane % 4 * 4;
  }

  // With other tiles, rows and pieces in the place of the first.
  __device__ Lanes AtTile(int tile) const { return Moved(tile * sizeof(Tile), 0); }
  __device__ Lanes AtRow(int row) const { return Moved(row * Tile::kRowBytes, 0); }  // 16, 32, ...
  __device__ Lanes AtPiece(int piece) const { return Moved(0, 16 * piece); }         // 2, 4, ...

  // Rows of four matrices from `row` (a multiple of 8) and `piece` (even) on: the second matrix is
  // below the first, and the others are to the right of them.
  __device__ uint32_t Down(const void* tile, int row, int piece) const {
    return At(down_, tile, row, piece);
  }
  // The second is to the right of the first, and the others are below them.
  __device__ uint32_t Across(const void* tile, int row, int piece) const {
    return At(across_, tile, row, piece);
  }
  // This lane's two numbers of a row of an accumulator, 8 rows by a piece.
  __device__ uint32_t Pair(const void* tile, int row, int piece) const {
    return At(pair_, tile, row, piece);
  }

 private:
  // Rows of a multiple of 1024 bytes, and tiles, do not change the permutation.
  __device__ Lanes Moved(uint32_t bytes, uint32_t permuted) const {
    Lanes moved = *this;
    for (auto* address : {&moved.down_, &moved.across_, &moved.pair_})
      *address = (*address + bytes) ^ permuted;
    return moved;
  }
  __device__ uint32_t At(uint32_t lane, const void* tile, int row, int piece) const {
    auto offset = static_cast<uint32_t>(static_cast<const char*>(tile) - origin_);
    return (lane ^ static_cast<uint32_t>(16 * piece)) + (offset + row * Tile::kRowBytes);
  }

  const char* origin_;
  uint32_t down_, across_, pair_;
};

// -inf for the keys after a query; `ahead`: first key minus first query.
template <int kM, int kN>
__device__ inline void Mask(float (&s)[kM][kN][4], int ahead) {
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (ahead + ColumnOf(n, i) > RowOf(m, i)) s[m][n][i] = -INFINITY;
}

// One head of one sequence: rows, `stride` numbers apart. A sequence has fewer than 2^32 numbers:
// `data` is the same for all threads of a block, and what is not takes one register.
template <typename Pointer>
struct Head {
  Pointer data;
  int stride;

  __device__ Pointer At(int row, int column) const {
    return data + (static_cast<uint32_t>(row) * static_cast<uint32_t>(stride) +
                   static_cast<uint32_t>(column));
  }
};

// Starts to copy rows [first, first + kRows) of a matrix of `rows` rows to a tile; zeros for rows
// that it lacks. By all threads of the block.
template <typename T, int kRows, int kColumns>
__device__ inline void CopyRows(Tile<T, kRows, kColumns>& to, Head<const T*> from, int first,
                                int rows) {
  constexpr int kPieces = Tile<T, kRows, kColumns>::kPieces, kStep = kThreads / kPieces;
  static_assert(kRows % kStep == 0 && kStep % 8 == 0, "the same pieces in each turn");
  int row = threadIdx.x / kPieces, piece = threadIdx.x % kPieces;
  T* place = to.Piece(row, piece);
  const T* data = from.At(first + row, piece * Vec<T>::kSize);
#pragma unroll
  for (int i = 0; i < kRows; i += kStep) {
    ptx::CopyAsync16(place + i * kColumns, data, first + row + i < rows);
    data += kStep * from.stride;
  }
}

// Writes rows [row, row + 16 kM) of a tile as rows from first + row on of a matrix of `rows` rows,
// without those it lacks. By a warp.
template <int kM, typename T, int kRows, int kColumns>
__device__ inline void WriteRows(Tile<T, kRows, kColumns>& from, int row, Head<T*> to, int first,
                                 int rows) {
  constexpr int kPieces = Tile<T, kRows, kColumns>::kPieces;
#pragma unroll
  for (int i = Lane(); i < 16 * kM * kPieces; i += kWarpSize) {
    int r = row + i / kPieces, piece = i % kPieces;
    if (first + r < rows)
      Vec<T>::Load(from.Piece(r, piece)).Store(to.At(first + r, piece * Vec<T>::kSize));
  }
}

// Stores an accumulator, times `scale`, in rows and columns from 0 on. By a warp.
template <typename T, typename Tile, int kM, int kN>
__device__ inline void StoreAccumulator(const Lanes<Tile>& lanes, void* tile,
                                        const float (&c)[kM][kN][4], float scale) {
#pragma unroll
  for (int n = 0; n < kN; ++n)
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        ptx::StoreShared(lanes.Pair(tile, 16 * m + 8 * half, n),
                         ptx::Pack<T>(c[m][n][2 * half] * scale, c[m][n][2 * half + 1] * scale));
}

// a: rows [0, 16 kM), columns [16 k, 16 k + 16) of the tile.
template <int kM, typename Tile>
__device__ inline void LoadA(uint32_t (&a)[kM][4], const Lanes<Tile>& lanes, const void* tile,
                             int k) {
#pragma unroll
  for (int m = 0; m < kM; ++m) ptx::LoadMatrix4(a[m], lanes.Down(tile, 16 * m, 2 * k));
}

// a: the transpose of rows [16 k, 16 k + 16), columns [0, 16 kM) of the tile.
template <int kM, typename Tile>
__device__ inline void LoadATransposed(uint32_t (&a)[kM][4], const Lanes<Tile>& lanes,
                                       const void* tile, int k) {
#pragma unroll
  for (int m = 0; m < kM; ++m)
    ptx::LoadMatrix4Transposed(a[m], lanes.Across(tile, 16 * k, 2 * m));
}

// c += a b, b the transpose of rows [0, 8 kN), columns [16 k, 16 k + 16) of the tile.
template <typename T, int kM, int kN, typename Tile>
__device__ inline void AddTimesTransposed(float (&c)[kM][kN][4], const uint32_t (&a)[kM][4],
                                          const Lanes<Tile>& lanes, const void* tile, int k) {
#pragma unroll
  for (int n = 0; n < kN; n += 2) {
    uint32_t b[4];
    ptx::LoadMatrix4(b, lanes.Across(tile, 8 * n, 2 * k));
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      ptx::Mma<T>(c[m][n], a[m], b[0], b[1]);
      ptx::Mma<T>(c[m][n + 1], a[m], b[2], b[3]);
    }
  }
}

// c += a b, b rows [16 k, 16 k + 16), columns [0, 8 kN) of the tile.
template <typename T, int kM, int kN, typename Tile>
__device__ inline void AddTimes(float (&c)[kM][kN][4], const uint32_t (&a)[kM][4],
                                const Lanes<Tile>& lanes, const void* tile, int k) {
#pragma unroll
  for (int n = 0; n < kN; n += 2) {
    uint32_t b[4];
    ptx::LoadMatrix4Transposed(b, lanes.Down(tile, 16 * k, n));
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

// T and NH; numbers of 32 bits are half the registers, and what they count is far fewer.
struct Shape {
  int T, NH, tiles;

  Shape(const AttentionSizes& sizes, int tile)
      : T(static_cast<int>(sizes.T)),
        NH(static_cast<int>(sizes.NH)),
        tiles(static_cast<int>(CeilDiv(sizes.T, tile))) {}
};

// A block's tile: of which head of which sequence, and which.
template <int kHS>
struct Place {
  int T, NH, b, h, tile;

  // The tiles of a head follow each other, so that what they share stays in the cache.
  __device__ explicit Place(const Shape& shape)
      : T(shape.T),
        NH(shape.NH),
        b(blockIdx.x / shape.tiles / shape.NH),
        h(blockIdx.x / shape.tiles % shape.NH),
        tile(blockIdx.x % shape.tiles) {}

  // q, k or v (`part` 0, 1, 2) of qkv; of dqkv.
  template <typename Pointer>
  __device__ Head<Pointer> Packed(Pointer qkv, int part) const {
    int stride = 3 * NH * kHS;
    return {qkv + int64_t{b} * T * stride + (part * NH + h) * kHS, stride};
  }
  // Of out; of dout.
  template <typename Pointer>
  __device__ Head<Pointer> Merged(Pointer out) const {
    int stride = NH * kHS;
    return {out + int64_t{b} * T * stride + h * kHS, stride};
  }
  // Of lse; of delta: a number a row.
  template <typename Pointer>
  __device__ Pointer PerRow(Pointer lse) const {
    return lse + (int64_t{b} * NH + h) * T;
  }
};

}  // namespace llmc::cuda::attention
