// Attention in float32 on any device, by plain arithmetic: what the kernels for the tensor cores
// are compared with, and what float32 runs use. The maths is theirs: attention_mma_forward.cu and
// attention_mma_backward.cu.
//
// A block has 32 rows, of queries or of keys, and goes over the rows of the other kind 32 at a
// time. Eight threads of a warp have a row: each makes every eighth of its scores, and keeps every
// eighth column of what is summed up. Nothing is added in an order that could change.
#include "cuda/attention.cuh"

namespace llmc::cuda {
namespace attention {
namespace {

constexpr int kTile = 32, kThreads = 256;
constexpr int kBlocks = 3;  // an SM: as many as its shared memory holds
constexpr int kLanes = kThreads / kTile;  // that share a row
constexpr int kMaxHS = 128;
constexpr int kScores = kTile / kLanes, kColumns = kMaxHS / kLanes;

// One number more than a row has, so that a column lies in different banks.
using Rows = float[kTile][kMaxHS + 1];
using Scores = float[kTile][kTile + 1];

struct ForwardShared {
  Rows q, k, v;
  Scores p;
};
struct BackwardShared {
  Rows q, k, v, dout;
  Scores p, ds;
  float lse[kTile], delta[kTile];
};

// The rows of one head of one sequence, in a tensor with `stride` numbers from row to row.
template <typename Pointer>
struct Head {
  Pointer data;
  int64_t stride, count;
  int HS;

  __device__ void Copy(Rows& to, int64_t first) const {
    for (int i = threadIdx.x; i < kTile * HS; i += kThreads) {
      int row = i / HS, column = i % HS;
      to[row][column] = first + row < count ? data[(first + row) * stride + column] : 0;
    }
  }
  // This thread's columns of its row.
  __device__ void Write(int64_t row, const float (&sum)[kColumns], float scale) const {
    if (row >= count) return;
    for (int i = 0; i < kColumns; ++i) {
      int column = threadIdx.x % kLanes + kLanes * i;
      if (column < HS) data[row * stride + column] = sum[i] * scale;
    }
  }
};

// A block's place, and where its head lies.
struct Place {
  int64_t head, first;
  AttentionSizes sizes;

  __device__ Place(const AttentionSizes& sizes, int tiles)
      : head(blockIdx.x / tiles), first(int64_t{blockIdx.x % tiles} * kTile), sizes(sizes) {}

  // q, k or v (`part` 0, 1, 2) of qkv; of dqkv.
  template <typename Pointer>
  __device__ Head<Pointer> Packed(Pointer qkv, int part) const {
    int64_t C = sizes.NH * sizes.HS, b = head / sizes.NH, h = head % sizes.NH;
    return {qkv + b * sizes.T * 3 * C + part * C + h * sizes.HS, 3 * C, sizes.T,
            static_cast<int>(sizes.HS)};
  }
  // Of out; of dout.
  template <typename Pointer>
  __device__ Head<Pointer> Merged(Pointer out) const {
    int64_t C = sizes.NH * sizes.HS, b = head / sizes.NH, h = head % sizes.NH;
    return {out + b * sizes.T * C + h * sizes.HS, C, sizes.T, static_cast<int>(sizes.HS)};
  }
};

__device__ inline float Dot(const float* a, const float* b, int HS) {
  float sum = 0;
  for (int i = 0; i < HS; ++i) sum += a[i] * b[i];
  return sum;
}

// sum += weights * rows, this thread's columns.
__device__ inline void AddRows(float (&sum)[kColumns], const float* weights, const Rows& rows,
                               int HS) {
  for (int r = 0; r < kTile; ++r)
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      int column = threadIdx.x % kLanes + kLanes * i;
      if (column < HS) sum[i] += weights[r] * rows[r][column];
    }
}

// Over the threads that share a row.
template <typename Combine>
__device__ inline float OverRow(float x, const Combine& combine) {
  for (int bit = 1; bit < kLanes; bit *= 2) x = combine(x, __shfl_xor_sync(kAllLanes, x, bit));
  return x;
}

__global__ void __launch_bounds__(kThreads, kBlocks)
    PlainForward(AttentionSizes sizes, int tiles, float scale, const float* qkv, float* out,
                 float* lse) {
  auto& shared = SharedMemory<ForwardShared>();
  Place at(sizes, tiles);
  int HS = static_cast<int>(sizes.HS);
  int row = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  int64_t query = at.first + row;
  at.Packed(qkv, 0).Copy(shared.q, at.first);
  float sum[kColumns] = {}, total = 0, max = -INFINITY;
  for (int64_t key = 0; key <= at.first; key += kTile) {
    __syncthreads();
    at.Packed(qkv, 1).Copy(shared.k, key);
    at.Packed(qkv, 2).Copy(shared.v, key);
    __syncthreads();
    float s[kScores], largest = max;
    for (int j = 0; j < kScores; ++j) {
      int k = lane + kLanes * j;
      s[j] = key + k <= query ? Dot(shared.q[row], shared.k[k], HS) * scale : -INFINITY;
      largest = fmaxf(largest, s[j]);
    }
    largest = OverRow(largest, [](float x, float y) { return fmaxf(x, y); });
    float shrink = expf(max - largest);
    max = largest;
    total *= shrink;
    for (int i = 0; i < kColumns; ++i) sum[i] *= shrink;
    for (int j = 0; j < kScores; ++j) {
      float p = expf(s[j] - max);
      total += p;
      shared.p[row][lane + kLanes * j] = p;
    }
    __syncwarp();
    AddRows(sum, shared.p[row], shared.v, HS);
  }
  total = OverRow(total, [](float x, float y) { return x + y; });
  at.Merged(out).Write(query, sum, 1 / total);
  if (lane == 0 && query < sizes.T) lse[at.head * sizes.T + query] = max + logf(total);
}

// delta = rowsum(dout out); a warp a row.
__global__ void __launch_bounds__(kThreads, kBlocks)
    PlainDelta(AttentionSizes sizes, const float* out, const float* dout, float* delta) {
  int64_t row = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarpSize;
  if (row >= sizes.B * sizes.T * sizes.NH) return;
  int lane = threadIdx.x % kWarpSize;
  float sum = 0;
  for (int64_t i = row * sizes.HS + lane; i < (row + 1) * sizes.HS; i += kWarpSize)
    sum += out[i] * dout[i];
  sum = WarpSum(sum);
  int64_t bt = row / sizes.NH, h = row % sizes.NH, b = bt / sizes.T, t = bt % sizes.T;
  if (lane == 0) delta[(b * sizes.NH + h) * sizes.T + t] = sum;
}

// Zeros after the last query: there q, dout and so what it adds are zeros too.
__device__ inline void CopyRowNumbers(BackwardShared& shared, const float* lse,
                                      const float* delta, int64_t first, int64_t T) {
  int i = threadIdx.x;
  if (i >= kTile) return;
  shared.lse[i] = first + i < T ? lse[first + i] : 0;
  shared.delta[i] = first + i < T ? delta[first + i] : 0;
}

// p and ds of one query and key of the tiles.
struct Score {
  float p, ds;

  __device__ Score(const BackwardShared& shared, int q, int k, bool visible, float scale, int HS) {
    p = visible ? expf(Dot(shared.q[q], shared.k[k], HS) * scale - shared.lse[q]) : 0;
    ds = p * (Dot(shared.dout[q], shared.v[k], HS) - shared.delta[q]);
  }
};

// dk and dv of a tile of keys.
__global__ void __launch_bounds__(kThreads, kBlocks)
    PlainKeysBackward(AttentionSizes sizes, int tiles, float scale, const float* lse,
                      const float* dout, const float* qkv, const float* delta, float* dqkv) {
  auto& shared = SharedMemory<BackwardShared>();
  Place at(sizes, tiles);
  int HS = static_cast<int>(sizes.HS);
  int row = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  at.Packed(qkv, 1).Copy(shared.k, at.first);
  at.Packed(qkv, 2).Copy(shared.v, at.first);
  float dk[kColumns] = {}, dv[kColumns] = {};
  for (int64_t query = at.first; query < sizes.T; query += kTile) {
    __syncthreads();
    at.Packed(qkv, 0).Copy(shared.q, query);
    at.Merged(dout).Copy(shared.dout, query);
    CopyRowNumbers(shared, lse + at.head * sizes.T, delta + at.head * sizes.T, query, sizes.T);
    __syncthreads();
    for (int q = lane; q < kTile; q += kLanes) {
      bool visible = at.first + row <= query + q;
      Score score(shared, q, row, visible, scale, HS);
      shared.p[row][q] = score.p;
      shared.ds[row][q] = score.ds;
    }
    __syncwarp();
    AddRows(dv, shared.p[row], shared.dout, HS);
    AddRows(dk, shared.ds[row], shared.q, HS);
  }
  at.Packed(dqkv, 1).Write(at.first + row, dk, scale);
  at.Packed(dqkv, 2).Write(at.first + row, dv, 1);
}

// dq of a tile of queries.
__global__ void __launch_bounds__(kThreads, kBlocks)
    PlainQueriesBackward(AttentionSizes sizes, int tiles, float scale, const float* lse,
                         const float* dout, const float* qkv, const float* delta, float* dqkv) {
  auto& shared = SharedMemory<BackwardShared>();
  Place at(sizes, tiles);
  int HS = static_cast<int>(sizes.HS);
  int row = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  at.Packed(qkv, 0).Copy(shared.q, at.first);
  at.Merged(dout).Copy(shared.dout, at.first);
  CopyRowNumbers(shared, lse + at.head * sizes.T, delta + at.head * sizes.T, at.first, sizes.T);
  float dq[kColumns] = {};
  for (int64_t key = 0; key <= at.first; key += kTile) {
    __syncthreads();
    at.Packed(qkv, 1).Copy(shared.k, key);
    at.Packed(qkv, 2).Copy(shared.v, key);
    __syncthreads();
    for (int k = lane; k < kTile; k += kLanes) {
      bool visible = key + k <= at.first + row;
      shared.ds[row][k] = Score(shared, row, k, visible, scale, HS).ds;
    }
    __syncwarp();
    AddRows(dq, shared.ds[row], shared.k, HS);
  }
  at.Packed(dqkv, 0).Write(at.first + row, dq, scale);
}

int Tiles(const AttentionSizes& sizes) { return static_cast<int>(CeilDiv(sizes.T, kTile)); }
float Scale(const AttentionSizes& sizes) { return 1 / std::sqrt(static_cast<float>(sizes.HS)); }

}  // namespace
}  // namespace attention

Status AttentionForwardPlain(Stream stream, AttentionSizes sizes, const float* qkv, float* out,
                             float* lse) {
  int tiles = attention::Tiles(sizes);
  return Launch(Kernel<attention::PlainForward>, sizes.B * sizes.NH * tiles, attention::kThreads,
                sizeof(attention::ForwardShared), stream, sizes, tiles, attention::Scale(sizes),
                qkv, out, lse);
}

Status AttentionBackwardPlain(Stream stream, AttentionSizes sizes, const float* out,
                              const float* lse, const float* dout, const float* qkv, float* dqkv,
                              float* delta) {
  int tiles = attention::Tiles(sizes);
  int64_t blocks = sizes.B * sizes.NH * tiles;
  int64_t rows = sizes.B * sizes.T * sizes.NH;
  Status status =
      Launch(Kernel<attention::PlainDelta>, CeilDiv(rows * kWarpSize, attention::kThreads),
             attention::kThreads, 0, stream, sizes, out, dout, delta);
  for (auto& kernel :
       {Kernel<attention::PlainKeysBackward>, Kernel<attention::PlainQueriesBackward>}) {
    if (!status.ok()) return status;
    status = Launch(kernel, blocks, attention::kThreads, sizeof(attention::BackwardShared), stream,
                    sizes, tiles, attention::Scale(sizes), lse, dout, qkv, delta, dqkv);
  }
  return status;
}

}  // namespace llmc::cuda
