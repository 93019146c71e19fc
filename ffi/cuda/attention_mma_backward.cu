// Attention backward on the tensor cores of sm_80 and later, by mma.sync. With p the probabilities,
//   dv = p^T dout,  ds = p (dout v^T - delta),  dq = ds k / sqrt(HS),  dk = ds^T q / sqrt(HS),
// where delta = rowsum(dout out) and p comes again from q k^T and lse (Dao 2023,
// arXiv:2307.08691).
//
// The main kernel has a tile of keys a block and goes over the queries from the diagonal on. It
// makes the scores and ds transposed, keys as rows, for then they are in the registers where the
// products for dv and dk want them; only dq needs ds by way of shared memory, and sums over blocks:
// by atomics in float32, rounded by a kernel of its own. Where that sum must have one order, a
// kernel with a tile of queries a block makes dq instead, from products computed again.
#include "cuda/attention.cuh"
#include "cuda/attention_tile.cuh"

namespace llmc::cuda {
namespace attention {
namespace {

// Rows of a warp in tiles of 16; as in the forward pass, HS 128 has registers for half of them.
template <int kHS>
constexpr int kM = kHS == 64 ? 2 : 1;
// Rows of a block's own tile: keys in KeysBackward, queries in QueriesBackward.
template <int kHS>
constexpr int kOwn = kWarps * 16 * kM<kHS>;
// Rows of the tiles that it goes over.
template <int kHS>
constexpr int kOther = kHS == 64 ? 64 : 32;
// As many of them as a warp has scores of at once.
constexpr int kAtOnce = 32;

// A block's place: the tiles of a head follow each other, so that what they share is in the cache.
struct Place {
  int64_t head, b, h;
  int tile;

  __device__ Place(const AttentionSizes& sizes, int tiles)
      : head(blockIdx.x / tiles),
        b(head / sizes.NH),
        h(head % sizes.NH),
        tile(static_cast<int>(blockIdx.x % tiles)) {}
};

// delta = rowsum(dout out), and zeros for dq_sum, if there is one. A thread has 16 bytes of a row.
template <typename T, int kHS>
__global__ void __launch_bounds__(256)
    Delta(AttentionSizes sizes, const T* out, const T* dout, float* delta, float* dq_sum) {
  constexpr int kVec = Vec<T>::kSize, kLanes = kHS / kVec;
  int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, row = i / kLanes;
  bool valid = row < sizes.B * sizes.T * sizes.NH;
  float sum = 0;
  if (valid) {
    auto x = Vec<T>::Load(out + i * kVec), dx = Vec<T>::Load(dout + i * kVec);
#pragma unroll
    for (int k = 0; k < kVec; ++k) sum += ToFloat(x.at[k]) * ToFloat(dx.at[k]);
  }
  for (int bit = kLanes / 2; bit > 0; bit /= 2) sum += __shfl_xor_sync(kAllLanes, sum, bit);
  if (!valid) return;
  int64_t bt = row / sizes.NH, h = row % sizes.NH, b = bt / sizes.T, t = bt % sizes.T;
  if (i % kLanes == 0) delta[(b * sizes.NH + h) * sizes.T + t] = sum;
  if (!dq_sum) return;
  for (int k = 0; k < kVec; k += 4) Vec<float>{}.Store(dq_sum + i * kVec + k);
}

// dq = scale dq_sum, into dqkv.
template <typename T>
__global__ void __launch_bounds__(256)
    RoundDq(int64_t count, int64_t C, float scale, const float* dq_sum, T* dqkv) {
  constexpr int kVec = Vec<T>::kSize;
  int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kVec;
  if (i >= count) return;
  Vec<T> dq;
#pragma unroll
  for (int k = 0; k < kVec; k += 4) {
    auto sum = Vec<float>::LoadStreaming(dq_sum + i + k);
#pragma unroll
    for (int j = 0; j < 4; ++j) dq.at[k + j] = FromFloat<T>(sum.at[j] * scale);
  }
  dq.Store(dqkv + i / C * 3 * C + i % C);
}

template <typename T, int kHS>
struct KeysShared {
  Tile<T, kOwn<kHS>, kHS> k, v;  // in the end, dk and dv
  Tile<T, kOther<kHS>, kHS> q[2], dout[2];
  alignas(16) float lse[2][kOther<kHS>], delta[2][kOther<kHS>];
};
template <typename T, int kHS>
struct KeysSharedWithDs : KeysShared<T, kHS> {
  Tile<T, kOwn<kHS>, kOther<kHS>> ds;  // a key a row
};

// dk and dv of a tile of keys; adds its part to dq_sum, unscaled, if kWithDq.
template <typename T, int kHS, bool kWithDq>
__global__ void __launch_bounds__(kThreads, 2)
    KeysBackward(AttentionSizes sizes, int tiles, float scale, const float* lse, const T* dout,
                 const T* qkv, const float* delta, T* dqkv, float* dq_sum) {
  constexpr int kM = attention::kM<kHS>, kKeys = kOwn<kHS>, kQueries = kOther<kHS>;
  constexpr int kN = kAtOnce / 8;
  using Shared = std::conditional_t<kWithDq, KeysSharedWithDs<T, kHS>, KeysShared<T, kHS>>;
  auto& shared = SharedMemory<Shared>();
  Place at(sizes, tiles);
  int rows = static_cast<int>(sizes.T);
  // The first tile has the most to do, and comes first.
  int first = at.tile * kKeys;
  int row = Warp() * 16 * kM, key = first + row;
  auto q = PackedHead(qkv, sizes, at.b, at.h, 0), k = PackedHead(qkv, sizes, at.b, at.h, 1),
       v = PackedHead(qkv, sizes, at.b, at.h, 2), d = MergedHead(dout, sizes, at.b, at.h);

  // Queries after the last are zeros, and so are their lse and delta: they add nothing.
  auto copy_queries = [&](int query, int stage) {
    CopyRows(shared.q[stage], q.data, q.stride, query, rows);
    CopyRows(shared.dout[stage], d.data, d.stride, query, rows);
    int i = threadIdx.x % kQueries, t = query + i;
    const float* from = threadIdx.x < kQueries ? lse : delta;
    float* to = threadIdx.x < kQueries ? &shared.lse[stage][i] : &shared.delta[stage][i];
    if (threadIdx.x < 2 * kQueries)
      ptx::CopyAsync4(to, from + at.head * rows + (t < rows ? t : 0), t < rows);
    ptx::CopyAsyncCommit();
  };
  CopyRows(shared.k, k.data, k.stride, first, rows);
  CopyRows(shared.v, v.data, v.stride, first, rows);
  copy_queries(first, 0);

  float dk[kM][kHS / 8][4], dv[kM][kHS / 8][4];
  SetZero(dk);
  SetZero(dv);
  for (int query = first, stage = 0; query < rows; query += kQueries, stage ^= 1) {
    ptx::CopyAsyncWait<0>();
    __syncthreads();
    // The other stage is free: all threads have passed the barrier since they read it.
    if (query + kQueries < rows) copy_queries(query + kQueries, stage ^ 1);
    auto &q_tile = shared.q[stage], &dout_tile = shared.dout[stage];
#pragma unroll 1
    for (int part = 0; part < kQueries; part += kAtOnce) {
      float s[kM][kN][4], ds[kM][kN][4];
      SetZero(ds);
      if (key < query + part + kAtOnce) {  // else all keys of the warp are after the queries
        uint32_t a[kM][4];
        SetZero(s);
#pragma unroll
        for (int i = 0; i < kHS / 16; ++i) {
#pragma unroll
          for (int m = 0; m < kM; ++m) LoadA(a[m], shared.k, row + 16 * m, i);
          AddTimesTransposed<T>(s, a, q_tile, part, i);
        }
#pragma unroll
        for (int n = 0; n < kN; ++n) {
          auto& l = *reinterpret_cast<const float2*>(&shared.lse[stage][part + ColumnOf(n, 0)]);
          float shift[2] = {l.x * kLog2E, l.y * kLog2E};
#pragma unroll
          for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i)
              s[m][n][i] = ptx::Exp2(fmaf(s[m][n][i], scale * kLog2E, -shift[i % 2]));
        }
        if (key + 16 * kM - 1 > query + part) {
          int ahead = key - query - part;
#pragma unroll
          for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int n = 0; n < kN; ++n)
#pragma unroll
              for (int i = 0; i < 4; ++i)
                if (ahead + RowOf(m, i) > ColumnOf(n, i)) s[m][n][i] = 0;
        }
#pragma unroll
        for (int i = 0; i < kAtOnce / 16; ++i) {
          ToA<T>(a, s, i);
          AddTimes<T>(dv, a, dout_tile, part + 16 * i, 0);
        }
#pragma unroll
        for (int i = 0; i < kHS / 16; ++i) {
#pragma unroll
          for (int m = 0; m < kM; ++m) LoadA(a[m], shared.v, row + 16 * m, i);
          AddTimesTransposed<T>(ds, a, dout_tile, part, i);
        }
#pragma unroll
        for (int n = 0; n < kN; ++n) {
          auto& x = *reinterpret_cast<const float2*>(&shared.delta[stage][part + ColumnOf(n, 0)]);
          float row_sum[2] = {x.x, x.y};
#pragma unroll
          for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i) ds[m][n][i] = s[m][n][i] * (ds[m][n][i] - row_sum[i % 2]);
        }
#pragma unroll
        for (int i = 0; i < kAtOnce / 16; ++i) {
          ToA<T>(a, ds, i);
          AddTimes<T>(dk, a, q_tile, part + 16 * i, 0);
        }
      }
      if constexpr (kWithDq) StoreAccumulator(shared.ds, row, ds, 1, part / 8);
    }
    if constexpr (kWithDq) {
      __syncthreads();
      // A warp has 32 queries and 32 columns of dq.
      constexpr int kParts = kQueries / 32;
      static_assert(kParts * (kHS / 32) == kWarps, "all of dq");
      int part = Warp() % kParts * 32, column = Warp() / kParts * 32;
      float dq[2][4][4];
      SetZero(dq);
#pragma unroll
      for (int i = 0; i < kKeys / 16; ++i) {
        uint32_t a[2][4];
#pragma unroll
        for (int m = 0; m < 2; ++m) LoadATransposed(a[m], shared.ds, part + 16 * m, i);
        AddTimes<T>(dq, a, shared.k, 16 * i, column);
      }
      auto to = MergedHead(dq_sum, sizes, at.b, at.h);
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          int t = query + part + RowOf(m, 2 * half);
          if (t >= rows) continue;
          float* sum = to.data + t * to.stride + column;
#pragma unroll
          for (int n = 0; n < 4; ++n)
            ptx::AtomicAdd2(sum + ColumnOf(n, 0), dq[m][n][2 * half], dq[m][n][2 * half + 1]);
        }
    }
  }

  __syncthreads();
  StoreAccumulator(shared.k, row, dk, scale);
  StoreAccumulator(shared.v, row, dv, 1);
  __syncwarp();
  auto dk_to = PackedHead(dqkv, sizes, at.b, at.h, 1),
       dv_to = PackedHead(dqkv, sizes, at.b, at.h, 2);
  WriteRows<kM>(shared.k, row, dk_to.data, dk_to.stride, first, rows);
  WriteRows<kM>(shared.v, row, dv_to.data, dv_to.stride, first, rows);
}

template <typename T, int kHS>
struct QueriesShared {
  Tile<T, kOwn<kHS>, kHS> q, dout;  // in the end, q is dq
  Tile<T, kOther<kHS>, kHS> k[2], v[2];
};

// dq of a tile of queries.
template <typename T, int kHS>
__global__ void __launch_bounds__(kThreads, 2)
    QueriesBackward(AttentionSizes sizes, int tiles, float scale, const float* lse, const T* dout,
                    const T* qkv, const float* delta, T* dqkv) {
  constexpr int kM = attention::kM<kHS>, kQueries = kOwn<kHS>, kKeys = kOther<kHS>;
  constexpr int kN = kAtOnce / 8;
  auto& shared = SharedMemory<QueriesShared<T, kHS>>();
  Place at(sizes, tiles);
  int rows = static_cast<int>(sizes.T);
  // The last tile has the most to do, and comes first.
  int first = (tiles - 1 - at.tile) * kQueries, end = min(first + kQueries, rows);
  int row = Warp() * 16 * kM, query = first + row;
  auto q = PackedHead(qkv, sizes, at.b, at.h, 0), k = PackedHead(qkv, sizes, at.b, at.h, 1),
       v = PackedHead(qkv, sizes, at.b, at.h, 2), d = MergedHead(dout, sizes, at.b, at.h);

  auto copy_keys = [&](int key, int stage) {
    CopyRows(shared.k[stage], k.data, k.stride, key, rows);
    CopyRows(shared.v[stage], v.data, v.stride, key, rows);
    ptx::CopyAsyncCommit();
  };
  CopyRows(shared.q, q.data, q.stride, first, rows);
  CopyRows(shared.dout, d.data, d.stride, first, rows);
  copy_keys(0, 0);

  float shift[kM][2], row_sum[kM][2];
  for (int m = 0; m < kM; ++m)
    for (int half = 0; half < 2; ++half) {
      int t = query + RowOf(m, 2 * half);
      shift[m][half] = t < rows ? lse[at.head * rows + t] * kLog2E : 0;
      row_sum[m][half] = t < rows ? delta[at.head * rows + t] : 0;
    }
  float dq[kM][kHS / 8][4];
  SetZero(dq);
  for (int key = 0, stage = 0; key < end; key += kKeys, stage ^= 1) {
    ptx::CopyAsyncWait<0>();
    __syncthreads();
    if (key + kKeys < end) copy_keys(key + kKeys, stage ^ 1);
#pragma unroll 1
    for (int part = 0; part < kKeys; part += kAtOnce) {
      if (key + part >= query + 16 * kM) break;  // all after this warp's queries
      float s[kM][kN][4], ds[kM][kN][4];
      uint32_t a[kM][4];
      SetZero(s);
      SetZero(ds);
#pragma unroll
      for (int i = 0; i < kHS / 16; ++i) {
#pragma unroll
        for (int m = 0; m < kM; ++m) LoadA(a[m], shared.q, row + 16 * m, i);
        AddTimesTransposed<T>(s, a, shared.k[stage], part, i);
#pragma unroll
        for (int m = 0; m < kM; ++m) LoadA(a[m], shared.dout, row + 16 * m, i);
        AddTimesTransposed<T>(ds, a, shared.v[stage], part, i);
      }
      int ahead = key + part - query;
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int n = 0; n < kN; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float p = ptx::Exp2(fmaf(s[m][n][i], scale * kLog2E, -shift[m][i / 2]));
            if (ahead + ColumnOf(n, i) > RowOf(m, i)) p = 0;
            ds[m][n][i] = p * (ds[m][n][i] - row_sum[m][i / 2]);
          }
#pragma unroll
      for (int i = 0; i < kAtOnce / 16; ++i) {
        ToA<T>(a, ds, i);
        AddTimes<T>(dq, a, shared.k[stage], part + 16 * i, 0);
      }
    }
  }

  StoreAccumulator(shared.q, row, dq, scale);
  __syncwarp();
  auto to = PackedHead(dqkv, sizes, at.b, at.h, 0);
  WriteRows<kM>(shared.q, row, to.data, to.stride, first, rows);
}

template <typename T, int kHS>
Status Backward(Stream stream, AttentionSizes sizes, bool deterministic, const T* out,
                const float* lse, const T* dout, const T* qkv, T* dqkv, float* delta,
                float* dq_sum) {
  constexpr int kVec = Vec<T>::kSize, kPointwise = 256;
  int64_t C = sizes.NH * kHS, count = sizes.B * sizes.T * C;
  int64_t pointwise = CeilDiv(count, kVec * kPointwise);
  int tiles = static_cast<int>(CeilDiv(sizes.T, kOwn<kHS>));
  int64_t blocks = sizes.B * sizes.NH * tiles;
  float scale = 1 / std::sqrt(static_cast<float>(kHS));
  if (deterministic) dq_sum = nullptr;
  Status status =
      Launch(Delta<T, kHS>, pointwise, kPointwise, 0, stream, sizes, out, dout, delta, dq_sum);
  if (!status.ok()) return status;
  if (deterministic) {
    status = Launch(KeysBackward<T, kHS, false>, blocks, kThreads, sizeof(KeysShared<T, kHS>),
                    stream, sizes, tiles, scale, lse, dout, qkv, delta, dqkv, dq_sum);
    if (!status.ok()) return status;
    return Launch(QueriesBackward<T, kHS>, blocks, kThreads, sizeof(QueriesShared<T, kHS>), stream,
                  sizes, tiles, scale, lse, dout, qkv, delta, dqkv);
  }
  status = Launch(KeysBackward<T, kHS, true>, blocks, kThreads, sizeof(KeysSharedWithDs<T, kHS>),
                  stream, sizes, tiles, scale, lse, dout, qkv, delta, dqkv, dq_sum);
  if (!status.ok()) return status;
  return Launch(RoundDq<T>, pointwise, kPointwise, 0, stream, count, C, scale, dq_sum, dqkv);
}

}  // namespace
}  // namespace attention

Status AttentionBackwardMma(Stream stream, Type type, AttentionSizes sizes, bool deterministic,
                            const void* out, const float* lse, const void* dout, const void* qkv,
                            void* dqkv, float* delta, float* dq_sum) {
  return ForTypeAndHeadSize(type, sizes.HS, [&](auto zero, auto head_size) {
    using T = decltype(zero);
    return attention::Backward<T, head_size>(
        stream, sizes, deterministic, static_cast<const T*>(out), lse,
        static_cast<const T*>(dout), static_cast<const T*>(qkv), static_cast<T*>(dqkv), delta,
        dq_sum);
  });
}

}  // namespace llmc::cuda
