// What the instructions of cuda/hopper.cuh do, on the host.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

namespace llmc::cuda::ptx {

// ---- Barriers.

struct alignas(8) Barrier {
  uint32_t phase : 1, fenced : 1, arrivals : 14, to_arrive : 16;
  int32_t bytes;  // announced and not there yet

  void EndPhase() {
    if (to_arrive || bytes) return;
    phase ^= 1;
    to_arrive = arrivals;
  }
};
static_assert(sizeof(Barrier) == 8, "as large as the hardware's");

inline void CheckBarrier(const Barrier* barrier) {
  CheckShared(barrier, 8, 8);
  if (barrier->arrivals == 0x3fff) emulator::Fail("a barrier that was not initialised");
}
inline void BarrierInit(Barrier* barrier, int arrivals) {
  CheckShared(barrier, 8, 8);
  barrier->phase = 0;
  barrier->arrivals = barrier->to_arrive = arrivals;
  barrier->bytes = 0;
  barrier->fenced = 0;
  emulator::thread->initialised.push_back(barrier);
}
inline void FenceBarrierInit() {
  for (void* barrier : emulator::thread->initialised) static_cast<Barrier*>(barrier)->fenced = 1;
  emulator::thread->initialised.clear();
}
inline void BarrierArriveExpecting(Barrier* barrier, int bytes) {
  CheckBarrier(barrier);
  if (barrier->to_arrive == 0) emulator::Fail("more arrive at a barrier than it has room for");
  barrier->bytes += bytes;
  --barrier->to_arrive;
  barrier->EndPhase();
}
inline void BarrierArrive(Barrier* barrier) { BarrierArriveExpecting(barrier, 0); }
inline void BarrierWait(Barrier* barrier, int parity) {
  CheckBarrier(barrier);
  emulator::WaitUntil("a phase of a barrier in shared memory",
                      [=] { return static_cast<int>(barrier->phase) != parity; });
}

inline void NamedBarrierSync(int id, int threads) { emulator::BarrierSync(id, threads); }
inline void NamedBarrierArrive(int id, int threads) { emulator::BarrierArrive(id, threads); }

template <int kRegisters>
void FewerRegisters() {}
template <int kRegisters>
void MoreRegisters() {}

// ---- The copy engine.

inline void FenceProxyAsync() {
  emulator::Thread& mine = *emulator::thread;
  for (uint32_t at : mine.stored) {
    int& unfenced = emulator::block->unfenced[at];
    if (unfenced == mine.number + 1) unfenced = 0;
  }
  mine.stored.clear();
}
// That no thread stored what the copy engine or a product is to use, without a fence.
inline void CheckFenced(uint32_t address, size_t bytes) {
  auto first = emulator::block->unfenced.begin() + address / 4;
  if (std::any_of(first, first + bytes / 4, [](int thread) { return thread; }))
    emulator::Fail("a tile that was stored without a fence");
}

struct TensorMap {
  unsigned char* data;
  uint64_t sizes[4], strides[4];
  uint32_t box[4];

  int64_t Bytes() const { return int64_t{2} * box[0] * box[1] * box[2] * box[3]; }

  // act(number in the tensor or null, byte of the tile) for each number of the box.
  template <typename Act>
  void ForEach(const std::array<int, 4>& corner, const Act& act) const {
    uint32_t i[4], row = 0;
    for (i[3] = 0; i[3] < box[3]; ++i[3])
      for (i[2] = 0; i[2] < box[2]; ++i[2])
        for (i[1] = 0; i[1] < box[1]; ++i[1], ++row)
          for (i[0] = 0; i[0] < box[0]; ++i[0]) {
            unsigned char* number = data;
            for (int d = 0; d < 4 && number; ++d) {
              int64_t at = int64_t{corner[d]} + i[d];
              bool inside = at >= 0 && at < static_cast<int64_t>(sizes[d]);
              number = inside ? number + at * strides[d] : nullptr;
            }
            act(number, Swizzled(row, 2 * i[0]));
          }
  }
};

inline Status MakeTensorMap(TensorMap* map, const void* data, const uint64_t (&sizes)[4],
                            const uint64_t (&strides)[3], const uint32_t (&box)[4]) {
  map->data = static_cast<unsigned char*>(const_cast<void*>(data));
  map->strides[0] = 2;
  for (int d = 0; d < 4; ++d) {
    if (d && strides[d - 1] % 16) return {"a stride that is no multiple of 16 bytes"};
    if (box[d] == 0 || box[d] > 256) return {"a box that is too large"};
    if (d) map->strides[d] = strides[d - 1];
    map->sizes[d] = sizes[d];
    map->box[d] = box[d];
  }
  bool right = box[0] == 64 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
  return {right ? nullptr : "a tensor map that has no tiles of 128 byte rows"};
}

inline void Prefetch(const TensorMap&) {}

inline void LoadBox(void* tile, const TensorMap& map, Barrier* barrier, int x, int y, int z,
                    int w) {
  CheckBarrier(barrier);
  if (!barrier->fenced) emulator::Fail("a barrier that was initialised without a fence");
  CheckShared(tile, map.Bytes(), 1024);
  CheckFenced(SharedAddress(tile), map.Bytes());
  // What is on its way is neither the old nor the new contents.
  std::memset(tile, 0xff, map.Bytes());
  emulator::Later([=] {
    map.ForEach({x, y, z, w}, [&](const unsigned char* number, uint32_t at) {
      static const unsigned char zero[2] = {};
      std::memcpy(static_cast<unsigned char*>(tile) + at, number ? number : zero, 2);
    });
    barrier->bytes -= static_cast<int32_t>(map.Bytes());
    barrier->EndPhase();
  });
}
inline void StoreBox(const TensorMap& map, const void* tile, int x, int y, int z, int w) {
  CheckShared(tile, map.Bytes(), 1024);
  CheckFenced(SharedAddress(tile), map.Bytes());
  emulator::thread->stores.Add([=] {
    map.ForEach({x, y, z, w}, [&](unsigned char* number, uint32_t at) {
      if (number) std::memcpy(number, static_cast<const unsigned char*>(tile) + at, 2);
    });
  });
}
inline void StoreCommit() { emulator::thread->stores.Commit(); }
inline void StoreWait() { emulator::thread->stores.Wait(0); }

inline void AtomicAdd4(float* sum, float x, float y, float z, float w) {
  if (reinterpret_cast<uintptr_t>(sum) % 16) emulator::Fail("an address that is not aligned");
  for (float more : {x, y, z, w}) *sum++ += more;
}

// ---- Products.

// An accumulator from the first product that adds to it until the last is done; its registers are
// NaN as long.
struct Accumulator {
  std::vector<float> values;  // of one thread after another
  int products = 0;
};

// What belongs to a warpgroup; its first thread has it.
struct Products {
  emulator::Groups groups;
  std::map<float*, Accumulator> accumulators;  // by the registers of the first thread
  bool fenced = false;
};
inline Products& MyProducts() {
  int first = emulator::thread->number / kWarpgroup * kWarpgroup;
  auto& products = emulator::block->threads[first].products;
  if (!products) products = std::make_shared<Products>();
  return *static_cast<Products*>(products.get());
}

template <typename... Registers>
void ProductFence(Registers&...) {
  MyProducts().fenced = true;
}
inline void ProductCommit() {
  int nothing = 0;
  emulator::InWarpgroup("wgmma.commit_group", nothing,
                        [](int**) { MyProducts().groups.Commit(); });
}
inline void BeforeWait(float) {}
template <int kBut, typename... Registers>
void ProductWait(Registers&...) {
  int nothing = 0;
  emulator::InWarpgroup("wgmma.wait_group", nothing, [](int**) {
    MyProducts().groups.Wait(kBut);
    MyProducts().fenced = false;
  });
}

// A number of an operand, as its descriptor says: `outer` counts rows or columns of the matrix,
// `inner` is what is summed over. outer_first: the tile has a row for each `outer`.
template <typename T>
float OperandNumber(uint64_t operand, int outer, int inner, bool outer_first) {
  uint32_t start = (operand & 0x3fff) << 4, leading = (operand >> 16 & 0x3fff) << 4,
           stride = (operand >> 32 & 0x3fff) << 4;
  uint32_t at = outer_first ? outer / 8 * stride + outer % 8 * kSwizzleRow + inner * 2
                            : outer / 64 * leading + inner / 8 * stride +
                                  inner % 8 * kSwizzleRow + outer % 64 * 2;
  at += start;
  at ^= (at >> 7 & 7) << 4;
  const emulator::Block& block = *emulator::block;
  if (at + 2 > block.shared_size) emulator::Fail("an operand that is not in shared memory");
  CheckFenced(at, 4);
  uint16_t bits;
  std::memcpy(&bits, block.shared + at, 2);
  return ToFloat(T{bits});
}

struct Factors {
  float* d;
  const uint32_t* a_registers;  // or null, and then
  uint64_t a, b;
  bool add;
};

template <typename T, int kN, bool kColumnsA, bool kRowsB>
void Multiply(const std::array<Factors, kWarpgroup>& threads, std::vector<float>& d) {
  float a[64][16], b[kN][16];  // b transposed
  auto& common = threads[0];
  for (int k = 0; k < 16; ++k) {
    for (int row = 0; row < 64; ++row)
      if (!common.a_registers) a[row][k] = OperandNumber<T>(common.a, row, k, !kColumnsA);
    for (int n = 0; n < kN; ++n) b[n][k] = OperandNumber<T>(common.b, n, k, !kRowsB);
  }
  for (int t = 0; t < kWarpgroup; ++t) {
    int first = t / 32 * 16 + t % 32 / 4, pair = t % 4 * 2;
    for (int i = 0; i < 8 && common.a_registers; ++i)
      a[first + i / 2 % 2 * 8][pair + i % 2 + i / 4 * 8] =
          ToFloat(FromBits<T>(threads[t].a_registers[i / 2] >> i % 2 * 16));
  }
  for (int t = 0; t < kWarpgroup; ++t)
    for (int i = 0; i < kN / 2; ++i) {
      int row = t / 32 * 16 + t % 32 / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + t % 4 * 2 + i % 2;
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[column][k];
      float& to = d[t * (kN / 2) + i];
      to = common.add ? to + sum : sum;
    }
}

template <typename T, int kN, bool kColumnsA, bool kRowsB>
void StartProduct(Factors mine) {
  emulator::InWarpgroup("wgmma", mine, [](Factors** threads) {
    constexpr int kSize = kN / 2;
    Products& mine = MyProducts();
    if (!mine.fenced) emulator::Fail("a product without a fence since the last wait");
    std::array<Factors, kWarpgroup> all;
    for (int t = 0; t < kWarpgroup; ++t) {
      all[t] = *threads[t];
      if (all[t].a != all[0].a || all[t].b != all[0].b || all[t].add != all[0].add)
        emulator::Fail("threads of a warpgroup that give a product different operands");
    }
    Accumulator& sum = mine.accumulators[all[0].d];
    if (sum.products++ == 0)
      for (const Factors& thread : all) {
        sum.values.insert(sum.values.end(), thread.d, thread.d + kSize);
        std::fill(thread.d, thread.d + kSize, NAN);
      }
    mine.groups.Add([all, &mine] {
      Accumulator& sum = mine.accumulators[all[0].d];
      Multiply<T, kN, kColumnsA, kRowsB>(all, sum.values);
      if (--sum.products) return;
      for (int t = 0; t < kWarpgroup; ++t)
        std::copy_n(&sum.values[t * kSize], kSize, all[t].d);
      mine.accumulators.erase(all[0].d);
    });
  });
}

template <typename T, bool kColumnsA, bool kRowsB, int kSize>
void Product(float (&d)[kSize], uint64_t a, uint64_t b, bool add) {
  StartProduct<T, 2 * kSize, kColumnsA, kRowsB>({d, nullptr, a, b, add});
}
template <typename T, bool kRowsB, int kSize>
void Product(float (&d)[kSize], const uint32_t (&a)[4], uint64_t b, bool add) {
  StartProduct<T, 2 * kSize, false, kRowsB>({d, a, 0, b, add});
}

}  // namespace llmc::cuda::ptx
