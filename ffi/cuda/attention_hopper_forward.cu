// Attention forward on the tensor cores of sm_90:
//   out = softmax(q k^T / sqrt(HS), causal) v,  lse = log sum exp of the scaled scores.
//
// FlashAttention-3 (Shah et al. 2024, arXiv:2407.08608): a block has a tile of 128 queries, 64 for
// each of two warpgroups, and goes over the keys from the diagonal down, 128 at a time. A
// warpgroup has the product for the next scores made while that of the last probabilities and
// values runs; and the two take turns, so that the products of the one run during the exponentials
// of the other. Probabilities never leave registers.
#include "cuda/attention_hopper.cuh"

namespace llmc::cuda {
namespace hopper {
namespace {

constexpr int kQueries = 128, kOwn = kQueries / kConsumers, kKeys = 128;

// Tiles of keys, and of values, under way or in use.
template <int kHS>
constexpr int kStages = kHS == 64 ? 4 : 2;

template <typename T, int kHS>
struct alignas(1024) ForwardShared {
  static constexpr int kParts = kHS / 64;
  Tile<T, kQueries> q[2][kParts];
  Tile<T, kKeys> k[kStages<kHS>][kParts], v[kStages<kHS>][kParts];
  Tile<T, kOwn> out[kConsumers][kParts];
  Room q_room[2], k_room[kStages<kHS>], v_room[kStages<kHS>];
};

// Barriers of consumers, one for each: its turn to start products, and its own.
enum { kTurn = 1, kOwnBarrier = kTurn + kConsumers };

// Has the copy engine bring all tiles of the block. By one thread.
template <typename T, int kHS>
__device__ inline void Bring(ForwardShared<T, kHS>& shared, const Shape& shape,
                             const ptx::TensorMap& qkv) {
  constexpr int kParts = kHS / 64;
  Ring<2> q;
  Ring<kStages<kHS>> kv;
  auto bring = [&](auto& tiles, Room& room, int parity, int head, int row, int b) {
    room.WaitUntilEmpty(parity);
    room.Expect(sizeof(tiles));
#pragma unroll
    for (int part = 0; part < kParts; ++part)
      ptx::LoadBox(tiles[part], qkv, &room.full, 64 * part, head, row, b);
  };
  for (Work work(shape); work.Left(); work.Next()) {
    bring(shared.q[q.stage], shared.q_room[q.stage], q.parity, work.h, work.tile * kQueries,
          work.b);
    q.Next();
    for (int tile = work.tile; tile >= 0; --tile, kv.Next()) {
      bring(shared.k[kv.stage], shared.k_room[kv.stage], kv.parity, shape.NH + work.h,
            tile * kKeys, work.b);
      bring(shared.v[kv.stage], shared.v_room[kv.stage], kv.parity, 2 * shape.NH + work.h,
            tile * kKeys, work.b);
    }
  }
}

// The softmax of this thread's two rows so far.
struct Softmax {
  float scale;           // from a score to the exponent of 2
  float max[2], sum[2];  // sum: of this thread's columns

  // Makes the scores s probabilities; shrink: what was added up so far is to be multiplied by.
  template <int kSize>
  __device__ void Update(float (&s)[kSize], float (&shrink)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = max[half];
#pragma unroll
      for (int n = 0; n < kSize; n += 4)
        largest = fmaxf(largest, fmaxf(s[n + 2 * half], s[n + 2 * half + 1]));
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
      shrink[half] = ptx::Exp2((max[half] - largest) * scale);
      max[half] = largest;
      float shift = -largest * scale, more = 0;
#pragma unroll
      for (int n = 2 * half; n < kSize; n += 4)
#pragma unroll
        for (int i = n; i < n + 2; ++i) {
          s[i] = ptx::Exp2(fmaf(s[i], scale, shift));
          more += s[i];
        }
      sum[half] = sum[half] * shrink[half] + more;
    }
  }
};

// s = q k^T, for 128 keys or the first 64.
template <typename T, int kSize, int kParts>
__device__ inline void StartScores(float (&s)[kSize], const Tile<T, kQueries> (&q)[kParts], int row,
                                   const Tile<T, kKeys> (&k)[kParts]) {
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    uint64_t a = ptx::Operand(ptx::SharedAddress(&q[part]) + row * ptx::kSwizzleRow);
    uint64_t b = ptx::Operand(ptx::SharedAddress(&k[part]));
#pragma unroll
    for (int i = 0; i < 4; ++i)
      ptx::Product<T, false, false>(s, a + i * ptx::kNextColumns, b + i * ptx::kNextColumns,
                                    part || i);
  }
  ptx::ProductCommit();
}

// out += p v.
template <typename T, int kParts>
__device__ inline void StartOut(float (&out)[kParts][32], const uint32_t (&p)[8][4],
                                const Tile<T, kKeys> (&v)[kParts]) {
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    uint64_t b = ptx::Operand(ptx::SharedAddress(&v[part]));
#pragma unroll
    for (int i = 0; i < 8; ++i)
      ptx::Product<T, true>(out[part], p[i], b + i * ptx::kNextRows, true);
  }
  ptx::ProductCommit();
}

// -inf for the keys after a query; `ahead`: first key minus first query of the warpgroup.
template <int kSize>
__device__ inline void Mask(float (&s)[kSize], int ahead) {
  int row = RowOfThread() - ColumnOfThread() - ahead;
#pragma unroll
  for (int i = 0; i < kSize; ++i)
    if (i / 4 * 8 + i % 2 > row + i % 4 / 2 * 8) s[i] = -INFINITY;
}

// A warpgroup's part of all tiles of the block; me: which it is.
template <typename T, int kHS>
__device__ inline void Compute(ForwardShared<T, kHS>& shared, const Shape& shape, float scale,
                               int me, const ptx::TensorMap& out_map, float* lse) {
  constexpr int kParts = kHS / 64;
  int thread = threadIdx.x % ptx::kWarpgroup;
  auto& staged = shared.out[me];
  Ring<2> ring;
  Ring<kStages<kHS>> kv;
  float s[64], out[kParts][32], shrink[2];
  uint32_t p[8][4];

  if (me != 0) ptx::NamedBarrierArrive(kTurn, kConsumers * ptx::kWarpgroup);
  for (Work work(shape); work.Left(); work.Next(), ring.Next()) {
    auto& q = shared.q[ring.stage];
    Softmax softmax = {scale * kLog2E, {-INFINITY, -INFINITY}, {0, 0}};
    shared.q_room[ring.stage].WaitUntilFull(ring.parity);
    shared.k_room[kv.stage].WaitUntilFull(kv.parity);
    // The second half of the keys comes after the first of the queries. (Of half of s the compiler
    // would make products one after another.)
    if (me == 0) {
      float half[32];
      ptx::ProductFence(half);
      StartScores<T>(half, q, 0, shared.k[kv.stage]);
      ptx::ProductWait<0>(half);
      Mask(half, 0);
      softmax.Update(half, shrink);
#pragma unroll
      for (int i = 0; i < 64; ++i) s[i] = i < 32 ? half[i] : 0;
    } else {
      ptx::ProductFence(s);
      StartScores<T>(s, q, kOwn, shared.k[kv.stage]);
      ptx::ProductWait<0>(s);
      Mask(s, -kOwn);
      softmax.Update(s, shrink);
    }
    shared.k_room[kv.stage].Release();
    Round<T>(p, s);
#pragma unroll
    for (int part = 0; part < kParts; ++part)
#pragma unroll
      for (int i = 0; i < 32; ++i) out[part][i] = 0;

    for (int tile = work.tile; tile > 0; --tile) {
      Ring<kStages<kHS>> last = kv;
      kv.Next();
      shared.k_room[kv.stage].WaitUntilFull(kv.parity);
      shared.v_room[last.stage].WaitUntilFull(last.parity);
      ptx::NamedBarrierSync(kTurn + me, kConsumers * ptx::kWarpgroup);
      ptx::ProductFence(s, out, p);
      StartScores<T>(s, q, kOwn * me, shared.k[kv.stage]);
      StartOut<T>(out, p, shared.v[last.stage]);
      ptx::NamedBarrierArrive(kTurn + (me ^ 1), kConsumers * ptx::kWarpgroup);
      ptx::ProductWait<1>(s);
      shared.k_room[kv.stage].Release();
      softmax.Update(s, shrink);
      // the exponentials beside the product; at HS 128 there are no registers for that
      if constexpr (kHS == 64) ptx::BeforeWait(softmax.sum[0] + softmax.sum[1]);
      ptx::ProductWait<0>(out, p);
      shared.v_room[last.stage].Release();
#pragma unroll
      for (int part = 0; part < kParts; ++part)
#pragma unroll
        for (int i = 0; i < 32; ++i) out[part][i] *= shrink[i % 4 / 2];
      Round<T>(p, s);
    }
    shared.q_room[ring.stage].Release();
    shared.v_room[kv.stage].WaitUntilFull(kv.parity);
    ptx::ProductFence(out, p);
    StartOut<T>(out, p, shared.v[kv.stage]);
    ptx::ProductWait<0>(out, p);
    shared.v_room[kv.stage].Release();
    kv.Next();

    int row = work.tile * kQueries + kOwn * me;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = softmax.sum[half];
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      float factor = 1 / sum;
#pragma unroll
      for (int part = 0; part < kParts; ++part)
#pragma unroll
        for (int i = 0; i < 32; ++i)
          if (i % 4 / 2 == half) out[part][i] *= factor;
      int t = row + RowOfThread() + 8 * half;
      if (thread % 4 == 0 && t < shape.T)
        lse[(int64_t{work.b} * shape.NH + work.h) * shape.T + t] =
            softmax.max[half] * scale + logf(sum);
    }
    // The tile before this one may still be read.
    if (thread == 0) ptx::StoreWait();
    ptx::NamedBarrierSync(kOwnBarrier + me, ptx::kWarpgroup);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      uint32_t rounded[4][4];
      Round<T>(rounded, out[part]);
      StoreRounded(staged[part], rounded);
    }
    ptx::FenceProxyAsync();
    ptx::NamedBarrierSync(kOwnBarrier + me, ptx::kWarpgroup);
    if (thread == 0) {
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        ptx::StoreBox(out_map, staged[part], 64 * part, work.h, row, work.b);
      ptx::StoreCommit();
    }
  }
  // Shared memory must outlive what reads it.
  if (thread == 0) ptx::StoreWait();
}

template <typename T, int kHS>
__global__ void __launch_bounds__(kThreads, 1)
    Forward(Shape shape, float scale, const __grid_constant__ ptx::TensorMap qkv,
            const __grid_constant__ ptx::TensorMap out, float* lse) {
#if LLMC_HOPPER
  auto& shared = SharedMemory<ForwardShared<T, kHS>>();
  if (threadIdx.x == 0) {
    ptx::Prefetch(qkv);
    ptx::Prefetch(out);
    for (Room& room : shared.q_room) room.Init(kConsumerWarps);
    for (Room& room : shared.k_room) room.Init(kConsumerWarps);
    for (Room& room : shared.v_room) room.Init(kConsumerWarps);
    ptx::FenceBarrierInit();
  }
  __syncthreads();
  int warpgroup = ptx::Warpgroup();
  if (warpgroup == 0) {
    ptx::FewerRegisters<kProducerRegisters>();
    if (threadIdx.x == 0) Bring(shared, shape, qkv);
  } else {
    ptx::MoreRegisters<kConsumerRegisters>();
    Compute(shared, shape, scale, warpgroup - 1, out, lse);
  }
#else
  __trap();
#endif
}

template <typename T, int kHS>
Status Run(Stream stream, AttentionSizes sizes, const void* qkv, void* out, float* lse) {
  Shape shape(sizes, kQueries);
  int NH = shape.NH;
  ptx::TensorMap qkv_map, out_map;
  Status status = MapRows(&qkv_map, sizes, 3 * NH, kQueries, qkv);
  if (status.ok()) status = MapRows(&out_map, sizes, NH, kOwn, out);
  if (!status.ok()) return status;
  static_assert(kQueries == kKeys, "one map for all");
  return Launch(Kernel<Forward<T, kHS>>, Blocks(shape), kThreads, sizeof(ForwardShared<T, kHS>),
                stream, shape, 1 / std::sqrt(static_cast<float>(kHS)), qkv_map, out_map, lse);
}

}  // namespace
}  // namespace hopper

Status AttentionForwardHopper(Stream stream, Type type, AttentionSizes sizes, const void* qkv,
                              void* out, float* lse) {
  return ForTypeAndHeadSize(type, sizes.HS, [&](auto zero, auto head_size) {
    return hopper::Run<decltype(zero), head_size>(stream, sizes, qkv, out, lse);
  });
}

}  // namespace llmc::cuda
