// What the kernels of attention for sm_90 have in common: their blocks' roles and order of work.
//
// A block is a warpgroup that has the copy engine bring tiles, and two that compute. It stays on
// its multiprocessor and takes tile after tile, so that the first copies of a tile are under way
// while the one before it is computed.
#pragma once

#include "cuda/attention.cuh"
#include "cuda/hopper.cuh"

namespace llmc::cuda::hopper {

constexpr int kConsumers = 2;  // warpgroups
constexpr int kThreads = (1 + kConsumers) * ptx::kWarpgroup;
// Each consumer warp tells on its own that it is done with a tile.
constexpr int kConsumerWarps = kConsumers * ptx::kWarpgroup / kWarpSize;
// Of 65536 registers a block, 168 a thread at first, what copies gives away.
constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;

// Rows of 64 numbers.
template <typename T, int kRows>
using Tile = T[kRows * 64];

// Which of several tiles is next, and the parity of its barriers.
template <int kStages>
struct Ring {
  int stage = 0, parity = 0;

  __device__ void Next() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

// A tile that the copy engine fills and consumer warps read.
struct Room {
  ptx::Barrier full, empty;

  __device__ void Init(int readers) {
    ptx::BarrierInit(&full, 1);
    ptx::BarrierInit(&empty, readers);
  }
  // Before the copies; `parity` of the ring, in which everything is empty at first.
  __device__ void WaitUntilEmpty(int parity) { ptx::BarrierWait(&empty, parity ^ 1); }
  __device__ void Expect(int bytes) { ptx::BarrierArriveExpecting(&full, bytes); }
  __device__ void WaitUntilFull(int parity) { ptx::BarrierWait(&full, parity); }
  // By all threads that read.
  __device__ void Release() {
    __syncwarp();
    if (threadIdx.x % kWarpSize == 0) ptx::BarrierArrive(&empty);
  }
};

struct Shape {
  int B, T, NH, tiles, items;

  Shape(const AttentionSizes& sizes, int tile)
      : B(static_cast<int>(sizes.B)),
        T(static_cast<int>(sizes.T)),
        NH(static_cast<int>(sizes.NH)),
        tiles(static_cast<int>(CeilDiv(sizes.T, tile))),
        items(B * NH * ((tiles + 1) / 2)) {}
};

// The tiles of a block, one after another. An item of work is the i-th tile of a head and the i-th
// from its end, which are about equally much together for all i; the items of a head follow each
// other, so that what they share stays in the cache.
struct Work {
  int tiles, NH, items, item, tile, b, h;

  __device__ explicit Work(const Shape& shape)
      : tiles(shape.tiles), NH(shape.NH), items(shape.items), item(blockIdx.x) {
    Begin();
  }
  __device__ bool Left() const { return item < items; }
  __device__ void Next() {
    int last = tiles - 1 - item % ((tiles + 1) / 2);
    if (tile != last) {
      tile = last;
    } else {
      item += gridDim.x;
      Begin();
    }
  }

 private:
  __device__ void Begin() {
    int pairs = (tiles + 1) / 2, head = item / pairs;
    tile = item % pairs;
    b = head / NH;
    h = head % NH;
  }
};

inline unsigned Blocks(const Shape& shape) { return std::min(shape.items, Multiprocessors()); }

// For copies of `rows` rows by 64 columns, at (column, head, row, b), of a tensor (B,T,heads,HS).
inline Status MapRows(ptx::TensorMap* map, const AttentionSizes& sizes, int heads, int rows,
                      const void* data) {
  auto row = static_cast<uint64_t>(heads * sizes.HS) * 2;
  return ptx::MakeTensorMap(
      map, data,
      {static_cast<uint64_t>(sizes.HS), static_cast<uint64_t>(heads),
       static_cast<uint64_t>(sizes.T), static_cast<uint64_t>(sizes.B)},
      {static_cast<uint64_t>(sizes.HS) * 2, row, row * static_cast<uint64_t>(sizes.T)},
      {64, 1, static_cast<uint32_t>(rows), 1});
}

// This thread's row in an accumulator, of d[0]; its column.
__device__ inline int RowOfThread() {
  return threadIdx.x % ptx::kWarpgroup / kWarpSize * 16 + threadIdx.x % kWarpSize / 4;
}
__device__ inline int ColumnOfThread() { return threadIdx.x % 4 * 2; }

// An accumulator, times `scale`, as the left operand of the next product: the registers of the one
// are those of the other, rounded.
template <typename T, int kK>
__device__ inline void Round(uint32_t (&to)[kK][4], const float (&d)[8 * kK], float scale = 1) {
#pragma unroll
  for (int i = 0; i < 4 * kK; ++i)
    to[i / 4][i % 4] = ptx::Pack<T>(d[2 * i] * scale, d[2 * i + 1] * scale);
}

// Stores 64 rows and 64 columns of that in a tile, at `tile`.
__device__ inline void StoreRounded(const void* tile, const uint32_t (&d)[4][4]) {
  uint32_t at = ptx::SharedAddress(tile) + ptx::Swizzled(RowOfThread(), 0) + ColumnOfThread() * 2;
#pragma unroll
  for (int i = 0; i < 16; ++i)
    ptx::StoreShared((at ^ (i / 2 * 16)) + i % 2 * 8 * ptx::kSwizzleRow, d[i / 4][i % 4]);
}

}  // namespace llmc::cuda::hopper
