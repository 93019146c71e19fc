// Gemm: every matrix product of the kernels, on any instruction set.
//
// C (M,N) = A (M,K) B (N,K)^T, summed in float. The smaller of A and B is packed whole, by all
// threads; then each task takes some rows of the other, packs them for itself and multiplies them
// panel by panel with what was packed (Goto & van de Geijn 2008). What is done with C is the
// caller's: `epilogue` gets each finished tile, or some rows of it, while it is in the first-level
// cache, so bias, GELU and the store cost no pass over memory; and with AMX hardly any time, for
// they are done between the products of the next tile (measured in
// benchmarks/results/cpu_step.md).
#pragma once

#include <type_traits>

#include "cpu/pack.h"
#include "cpu/tasks.h"

namespace llmc::LLMC_ISA {

// What an instruction set does for one form of panels:
//   kMR, kNR   rows and columns of a tile of C
//   kUnit      steps of a panel are a multiple of it
//   PackA, PackB
//   Scope      a constructor and destructor around the work of one task
//   Micro      c (kMR,kNR) = or += a b over `steps`; rows of c are ldc floats apart. `next` is
//              what will be read soon: it may be fetched meanwhile
//   kTiles     whether these are the tile registers: then rows of A lie in a panel as they are,
//              and a product is made faster than its result is written and read again. And then
//              Multiply does what Micro does, and something else meanwhile

// Panels of floats and fused multiply-adds.
struct FloatPanels {
#if defined(__AVX512F__)
  static constexpr int kMR = 8, kNV = 3;  // 24 sums, 3 of b and 1 of a: 28 of 32 registers
#elif defined(__AVX2__)
  static constexpr int kMR = 4, kNV = 3;  // 12 sums, 3 of b and 1 of a: 16 registers
#elif defined(__aarch64__)
  static constexpr int kMR = 4, kNV = 4;  // 16 sums: four pipes and four cycles want as many
#else
  static constexpr int kMR = 4, kNV = 2;  // 8 sums, 2 of b and 1 of a: 11 of 16 registers
#endif
  static constexpr int kNR = kNV * kLanes, kUnit = 1;
  static constexpr bool kTiles = false;
  using Form = Floats;

  template <typename T>
  static void PackA(const Operand<T>& a, int64_t rows, int64_t K, int64_t steps, uint32_t* out) {
    PackSteps<kMR>(Floats{}, a, rows, K, steps, out);
  }
  template <typename T>
  static void PackB(const Operand<T>& b, int64_t rows, int64_t K, int64_t steps, uint32_t* out) {
    PackSteps<kNR>(Floats{}, b, rows, K, steps, out);
  }

  struct Scope {};

  // Not inlined: in a larger function g++ 12 has no registers left for the sums.
  template <bool accumulate>
  [[gnu::noinline]] static void Micro(int64_t steps, const uint32_t* a_words,
                                      const uint32_t* b_words, float* c, int64_t ldc,
                                      const uint32_t* /*next*/) {
    auto* a = reinterpret_cast<const float*>(a_words);
    auto* b = reinterpret_cast<const float*>(b_words);
    Vec sum[kMR][kNV];
#pragma GCC unroll 8
    for (int r = 0; r < kMR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kNV; ++v) sum[r][v] = Vec{};
    for (int64_t s = 0; s < steps; ++s, a += kMR, b += kNR) {
      Vec columns[kNV];
#pragma GCC unroll 4
      for (int v = 0; v < kNV; ++v) columns[v] = Load(b + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kMR; ++r) {
        Vec row = Broadcast(a[r]);
#pragma GCC unroll 4
        for (int v = 0; v < kNV; ++v) sum[r][v] = row * columns[v] + sum[r][v];
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kMR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kNV; ++v) {
        // the block's sum is made first: a sum of blocks rounds less than one long sum
        float* at = c + r * ldc + v * kLanes;
        Store(at, accumulate ? Load(at) + sum[r][v] : sum[r][v]);
      }
  }
};

#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
// Panels of pairs and vdpbf16ps, which adds both products of a pair to a float.
struct PairPanels {
  static constexpr int kMR = 8, kNV = 3, kNR = kNV * kLanes, kUnit = 1;
  static constexpr bool kTiles = false;
  using Form = Pairs;

  template <typename T>
  static void PackA(const Operand<T>& a, int64_t rows, int64_t K, int64_t steps, uint32_t* out) {
    PackSteps<kMR>(Pairs{}, a, rows, K, steps, out);
  }
  template <typename T>
  static void PackB(const Operand<T>& b, int64_t rows, int64_t K, int64_t steps, uint32_t* out) {
    PackSteps<kNR>(Pairs{}, b, rows, K, steps, out);
  }

  struct Scope {};

  template <bool accumulate>
  [[gnu::noinline]] static void Micro(int64_t steps, const uint32_t* a, const uint32_t* b,
                                      float* c, int64_t ldc, const uint32_t* /*next*/) {
    __m512 sum[kMR][kNV];
#pragma GCC unroll 8
    for (int r = 0; r < kMR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kNV; ++v)
        sum[r][v] = accumulate ? _mm512_loadu_ps(c + r * ldc + v * 16) : _mm512_setzero_ps();
    for (int64_t s = 0; s < steps; ++s, a += kMR, b += kNR) {
      __m512bh columns[kNV];
#pragma GCC unroll 4
      for (int v = 0; v < kNV; ++v) columns[v] = (__m512bh)_mm512_loadu_si512(b + v * 16);
#pragma GCC unroll 8
      for (int r = 0; r < kMR; ++r) {
        __m512bh row = (__m512bh)_mm512_set1_epi32(a[r]);
#pragma GCC unroll 4
        for (int v = 0; v < kNV; ++v) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], row, columns[v]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kMR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kNV; ++v) _mm512_storeu_ps(c + r * ldc + v * 16, sum[r][v]);
  }
};
using HalfPanels = PairPanels;

#elif defined(__AMX_BF16__)
// Panels of pairs and the tile registers: 16 rows of 64 bytes each, eight of them. Four hold a
// (32,32) tile of C, two hold a, two hold b, and each product of two makes 8,192 multiply-adds.
struct TilePanels {
  static constexpr int kMR = 32, kNR = 32, kUnit = 16;
  static constexpr bool kTiles = true;
  using Form = Pairs;

  template <typename T>
  static void PackA(const Operand<T>& a, int64_t rows, int64_t K, int64_t steps, uint32_t* out) {
    PackRows<kMR>(Pairs{}, a, rows, K, steps, out);
  }
  template <typename T>
  static void PackB(const Operand<T>& b, int64_t rows, int64_t K, int64_t steps, uint32_t* out) {
    PackSteps<kNR>(Pairs{}, b, rows, K, steps, out);
  }

  // Sets the tile registers up on this thread, and gives them back so that the kernel need not
  // save them at each switch of threads.
  struct Scope {
    Scope() {
      struct alignas(64) {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
      } config;
      // g++ 12 thinks that _tile_loadconfig reads 8 bytes, and leaves the others unwritten
      __asm__ volatile("" ::"r"(&config) : "memory");
      _tile_loadconfig(&config);
    }
    ~Scope() { _tile_release(); }
  };

  template <bool accumulate>
  static void Micro(int64_t steps, const uint32_t* a, const uint32_t* b, float* c, int64_t ldc,
                    const uint32_t* next) {
    Multiply<false>(steps, a, b, c, ldc, accumulate, /*backwards=*/false, [&] {
      for (int line = 0; line < 4; ++line, next += 16)
        _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T0);
    });
  }

  // The same, from the last step to the first where `backwards`; meanwhile() is called after every
  // kUnit steps. What it does with vectors costs little: the processor does it beside the products,
  // which take 16 cycles each, or 64 where their power is held down, and leave the vector units
  // idle.
  //
  // Where `b_passes`, panels of b go past the first-level cache, where a panel of a remains that is
  // multiplied with several of them. If that is larger than the cache, there is still its last
  // part, with which the next call begins if it goes the other way.
  template <bool b_passes, typename Meanwhile>
  [[gnu::always_inline]] static void Multiply(int64_t steps, const uint32_t* a, const uint32_t* b,
                                              float* c, int64_t ldc, bool accumulate,
                                              bool backwards, const Meanwhile& meanwhile) {
    int64_t stride = ldc * sizeof(float), a_group = kUnit * kMR, b_group = kUnit * kNR;
    if (backwards) {
      a += (steps - kUnit) * kMR, b += (steps - kUnit) * kNR;
      a_group = -a_group, b_group = -b_group;
    }
    // g++ does not know that _tile_loadd reads memory: nothing stored before may come after
    __asm__ volatile("" ::: "memory");
    if (accumulate) {
      _tile_loadd(0, c, stride);
      _tile_loadd(1, c + 16, stride);
      _tile_loadd(2, c + 16 * ldc, stride);
      _tile_loadd(3, c + 16 * ldc + 16, stride);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t s = 0; s < steps; s += kUnit, a += a_group, b += b_group) {
      _tile_loadd(4, a, 64);
      if constexpr (b_passes) {
        _tile_stream_loadd(6, b, kNR * 4);
        _tile_stream_loadd(7, b + 16, kNR * 4);
      } else {
        _tile_loadd(6, b, kNR * 4);
        _tile_loadd(7, b + 16, kNR * 4);
      }
      _tile_loadd(5, a + 16 * 16, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
      meanwhile();
    }
    _tile_stored(0, c, stride);
    _tile_stored(1, c + 16, stride);
    _tile_stored(2, c + 16 * ldc, stride);
    _tile_stored(3, c + 16 * ldc + 16, stride);
    __asm__ volatile("" ::: "memory");
  }
};
using HalfPanels = TilePanels;

#else
using HalfPanels = FloatPanels;  // bfloat16 becomes float when it is packed
#endif

template <typename T>
struct PanelsOf;
template <>
struct PanelsOf<float> {
  using Type = FloatPanels;
};
template <>
struct PanelsOf<BF16> {
  using Type = HalfPanels;
};

// Sizes of the blocks; measured on a core with 48 KiB of first-level and 2 MiB of second-level
// cache, 188 GB/s from the second level and 30 GB/s beyond it.
constexpr int64_t kBlockSteps = 128;  // a panel that is kept (16 or 24 KiB) is in the first level
constexpr int64_t kTileSteps = 512;  // of tile registers, whose panels (64 KiB) are in the second
constexpr int64_t kBlockM = 256;  // rows that a task streams (128 to 512 KiB) are in the second,
constexpr int64_t kBlockN = 768;  // and so is the block of C of so many kept rows (768 KiB),
constexpr int64_t kOneBlockM = 512;  // without which there is room for more rows (to 1 MiB)
constexpr int64_t kTogether = 4;  // kept panels of B that follow each other for a panel of A
constexpr int64_t kWholeWords = 1 << 17;  // that may be packed of the streamed operand (512 KiB)

// A finished piece of C: rows x columns from (row, column) on; rows of data are ld floats apart,
// and whole vectors may be read where a row ends in the middle of one.
struct Tile {
  int64_t row, column, rows, columns;
  const float* data;
  int64_t ld;
};

// Fetches a block of an operand into the cache bit by bit, while something else is computed: what
// PackA reads next lies in memory. (Not with tile registers: for these the second level is full.)
class Fetcher {
 public:
  // The block of rows by k at the start of m, in `calls` calls of Some.
  template <typename T>
  Fetcher(const Operand<T>& m, int64_t rows, int64_t k, int64_t calls)
      : next_(reinterpret_cast<const char*>(m.data)) {
    bool along_k = m.k_stride == 1;
    stride_ = (along_k ? m.row_stride : m.k_stride) * sizeof(T);
    lines_ = CeilDiv(Max<int64_t>(0, along_k ? k : rows) * sizeof(T), 64);
    left_ = Max<int64_t>(0, along_k ? rows : k) * lines_;
    each_ = CeilDiv(left_, Max<int64_t>(calls, 1));
  }

  void Some() {
    for (int64_t i = Min(each_, left_); i > 0; --i, --left_) {
      __builtin_prefetch(next_ + 64 * line_, 0, 2);
      if (++line_ == lines_) line_ = 0, next_ += stride_;
    }
  }

 private:
  const char* next_;
  int64_t stride_, lines_, left_, each_, line_ = 0;
};

// The default of `prepare`: see Gemm.
struct Nothing {
  void operator()(const Tile&) const {}
};

// Fetches the part of a row-major tensor (..., columns) that an epilogue will read in this tile.
template <typename T>
void FetchTile(const Tile& tile, const T* data, int64_t columns) {
  for (int64_t r = 0; r < tile.rows; ++r) {
    const char* row = reinterpret_cast<const char*>(data + (tile.row + r) * columns + tile.column);
    for (int64_t byte = 0; byte < tile.columns * int64_t{sizeof(T)}; byte += 64)
      __builtin_prefetch(row + byte, 0, 2);
  }
}

// One of the two operands of a product, in panels of kR rows.
template <typename T, int kR, auto kPack>
struct Side {
  const Operand<T>& m;
  int64_t rows;  // in all

  // Words that `count` rows take at `steps`; PackSteps fills kLanes rows.
  static int64_t Words(int64_t count, int64_t steps) {
    return RoundUp(RoundUp(count, kR), kLanes) * steps;
  }
  void Pack(int64_t row, int64_t k, int64_t count, int64_t K, int64_t steps, uint32_t* out) const {
    kPack(m.From(row, k), count, K - k, steps, out);
  }
};

// Rows of the streamed operand for each task: few enough for the second-level cache, and so many
// that all threads get equally many tasks, two or more, where panels allow it.
inline int64_t StreamedRows(int64_t rows, int64_t panel, int64_t threads, int64_t block) {
  const int64_t most = block / panel * panel;
  for (int64_t tasks = RoundUp(Max(CeilDiv(rows, most), 2 * threads), threads);; tasks += threads) {
    const int64_t each = RoundUp(CeilDiv(rows, tasks), panel);
    if (each == panel || CeilDiv(rows, each) % threads == 0) return each;
  }
}

// Lines of memory that are brought to a cache, `each` at a time.
class Ahead {
 public:
  Ahead(const void* begin, int64_t each) : next_(static_cast<const char*>(begin)), each_(each) {}

  template <int kLevel>
  void Some() {
    for (int64_t i = 0; i < each_; ++i, next_ += 64) __builtin_prefetch(next_, 0, 4 - kLevel);
  }

 private:
  const char* next_;
  const int64_t each_;
};

// The epilogue of the tile that was made last: it waits until the next one is made by tile
// registers, and a few rows at a time are done meanwhile.
template <typename P, typename Epilogue>
class Behind {
 public:
  explicit Behind(const Epilogue& epilogue) : epilogue_(epilogue) {}

  void Begin(const Tile& tile) {
    tile_ = tile;
    done_ = 0;
    whole_ = tile.rows == P::kMR && tile.columns == P::kNR;
  }

  // Some rows, of a whole tile: their number is known where this is compiled.
  [[gnu::always_inline]] void Some() {
    if (!whole_) return;
    epilogue_(Tile{tile_.row + done_, tile_.column, kRows, P::kNR, tile_.data + done_ * P::kNR,
                   P::kNR});
    done_ += kRows;
    whole_ = done_ < P::kMR;
  }
  void Rest() {
    if (done_ < tile_.rows) Finish();
  }

 private:
  static constexpr int64_t kRows = 2;

  [[gnu::noinline]] void Finish() {
    epilogue_(Tile{tile_.row + done_, tile_.column, tile_.rows - done_, tile_.columns,
                   tile_.data + done_ * tile_.ld, tile_.ld});
    done_ = tile_.rows;
    whole_ = false;
  }

  const Epilogue& epilogue_;
  Tile tile_{};
  int64_t done_ = 0;
  bool whole_ = false;
};

// A side that is packed whole, by all threads, for a product of `steps`:
// [block of block_steps steps][panel of kRows rows][...].
template <int kPer, int kRows>
class PackedSide {
 public:
  template <typename Side>
  PackedSide(Threads& threads, const Side& side, int64_t K, int64_t steps, int64_t block_steps)
      : padded_(RoundUp(side.rows, kFilled)), words_(padded_ * steps) {
    const int64_t groups = CeilDiv(side.rows, kGroup);
    ParallelFor(threads, groups * CeilDiv(steps, block_steps), [&](int64_t task) {
      const int64_t y = task % groups * kGroup, s = task / groups * block_steps;
      const int64_t count = Min(kGroup, side.rows - y), some = Min(block_steps, steps - s);
      side.Pack(y, s * kPer, count, K, some, Panel(y, s, some));
    });
  }

  // The panel of the rows from y on, in the block of `some` steps from s on.
  uint32_t* Panel(int64_t y, int64_t s, int64_t some) const {
    return words_.data() + s * padded_ + y * some;
  }

 private:
  static constexpr int64_t kFilled = RoundUp(kLanes, kRows);  // rows that PackSteps fills together
  // Rows of a task. Of an operand that is stored along them they lie beside each other, and packing
  // 32 at a time took twice to three times as long: lines of the cache far apart.
  static constexpr int64_t kGroup = RoundUp(128, kFilled);
  int64_t padded_;  // rows
  SharedScratch<uint32_t> words_;
};

// Calls each(x, y) for the panels of xs streamed and ys kept rows: for `together` kept rows, each
// panel that is streamed with all of theirs.
template <int kStreamed, int kKept, typename Each>
void ForPanels(int64_t xs, int64_t ys, int64_t together, const Each& each) {
  for (int64_t begin = 0; begin < ys; begin += together)
    for (int64_t x = 0; x < xs; x += kStreamed)
      for (int64_t y = begin; y < Min(ys, begin + together); y += kKept) each(x, y);
}

// Calls epilogue(tile) for every tile of C, whose rows are those of `a` and columns those of `b`.
// One side is kept: packed whole, by all threads. The other is streamed: each task packs some rows
// of it for itself and multiplies them with all that is kept.
template <typename P, bool stream_b, typename A, typename B, typename Epilogue, typename Prepare>
void Product(Threads& threads, int64_t K, const A& a, const B& b, const Epilogue& epilogue,
             const Prepare& prepare) {
  const auto& kept = [&]() -> const auto& {
    if constexpr (stream_b) return a; else return b;
  }();
  const auto& streamed = [&]() -> const auto& {
    if constexpr (stream_b) return b; else return a;
  }();
  constexpr int kKept = stream_b ? P::kMR : P::kNR, kStreamed = stream_b ? P::kNR : P::kMR;
  constexpr int kPer = P::Form::kPer, kTile = P::kMR * P::kNR;
  const int64_t steps = RoundUp(CeilDiv(K, kPer), P::kUnit);
  const int64_t most_steps = P::kTiles ? kTileSteps : kBlockSteps;
  const int64_t block_steps = RoundUp(CeilDiv(steps, CeilDiv(steps, most_steps)), P::kUnit);
  const bool one_block = block_steps >= steps;  // a tile is finished at once: two will do
  const bool no_blocks = P::kTiles && one_block;
  const int64_t kept_block = no_blocks ? RoundUp(kept.rows, kKept) : kBlockN / kKept * kKept;
  const int64_t streamed_block = StreamedRows(streamed.rows, kStreamed, threads.count(),
                                              no_blocks ? kOneBlockM : kBlockM);
  // Tile registers have the next panel of B for each tile, so that which way a tile is made does
  // not depend on where a row of A is.
  const int64_t together = P::kTiles && !stream_b ? kTogether * kKept : kKept;

  const PackedSide<kPer, kKept> packed(threads, kept, K, steps, block_steps);
  ParallelFor(threads, CeilDiv(streamed.rows, streamed_block), [&](int64_t task) {
    [[maybe_unused]] typename P::Scope scope;
    const int64_t x0 = task * streamed_block, xs = Min(streamed_block, streamed.rows - x0);
    const int64_t x_panels = CeilDiv(xs, kStreamed);
    // packed a block of steps at a time, unless it is needed several times and fits the cache
    const bool whole = kept.rows > kept_block && streamed_block * steps <= kWholeWords;
    auto* words = Scratch<uint32_t>(
        Slot::kA, streamed.Words(streamed_block, whole ? steps : block_steps));
    auto* c =
        Scratch<float>(Slot::kC, (one_block ? 2 : x_panels * (kept_block / kKept)) * kTile);
    int64_t made = 0;
    Behind<P, Epilogue> behind(epilogue);
    for (int64_t y0 = 0; y0 < kept.rows; y0 += kept_block)
      for (int64_t s = 0; s < steps; s += block_steps) {
        const int64_t ys = Min(kept_block, kept.rows - y0), some = Min(block_steps, steps - s);
        const bool pack = y0 == 0 || !whole, more = s + some < steps;
        uint32_t* block = words + (whole ? s * x_panels * kStreamed : 0);
        if (pack) streamed.Pack(x0, s * kPer, xs, K, some, block);
        // next come the block behind this one, the first one again, or the first of the task this
        // thread will get
        const bool same = more || (!whole && y0 + kept_block < kept.rows);
        const int64_t x_next = same ? x0 : x0 + streamed_block * threads.count();
        const int64_t k_next = more ? (s + some) * kPer : 0;
        [[maybe_unused]] Fetcher fetcher(
            streamed.m.From(x_next, k_next), pack ? Min(streamed_block, streamed.rows - x_next) : 0,
            Min(K - k_next, block_steps * kPer), x_panels * CeilDiv(ys, kKept));
        ForPanels<kStreamed, kKept>(xs, ys, together, [&](int64_t x, int64_t y) {
          const uint32_t *kept_panel = packed.Panel(y0 + y, s, some), *panel = block + x * some;
          const uint32_t *a_panel = stream_b ? kept_panel : panel,
                         *b_panel = stream_b ? panel : kept_panel;
          const int64_t at = one_block ? made++ % 2 : y / kKept * x_panels + x / kStreamed;
          const int64_t i = stream_b ? y0 + y : x0 + x, j = stream_b ? x0 + x : y0 + y;
          const Tile tile{i, j, Min<int64_t>(P::kMR, a.rows - i),
                          Min<int64_t>(P::kNR, b.rows - j), c + at * kTile, P::kNR};
          if (!more) prepare(tile);
          if constexpr (P::kTiles) {
            // each panel that is streamed fetches its share of a kept one that is soon needed
            const int64_t times = some / P::kUnit, share = CeilDiv(kKept * some, x_panels * times);
            const uint32_t* soon = kept_panel + together * some + x / kStreamed * share * times;
            const float* next_c = c + (at + (stream_b ? 1 : x_panels)) * kTile;
            Ahead kept_ahead{soon, CeilDiv(share, 16)};
            Ahead c_ahead{next_c, s > 0 ? CeilDiv(kTile / 16, times) : 0};
            auto meanwhile = [&] {
              kept_ahead.Some<2>();
              c_ahead.Some<1>();
              behind.Some();
            };
            P::template Multiply</*b_passes=*/true>(some, a_panel, b_panel, c + at * kTile, P::kNR,
                                                    /*accumulate=*/s > 0,
                                                    /*backwards=*/j / P::kNR % 2, meanwhile);
            behind.Rest();
            if (!more) behind.Begin(tile);
          } else {
            fetcher.Some();
            auto micro = s == 0 ? P::template Micro<false> : P::template Micro<true>;
            micro(some, a_panel, b_panel, c + at * kTile, P::kNR, nullptr);
            if (!more) epilogue(tile);
          }
        });
      }
    behind.Rest();
    StreamFence();
  });
}

// C (M,N) = a (M,K) b (N,K)^T, the product made in type T. The operand with more rows is streamed.
// prepare(tile) is called before a tile is finished, so that what the epilogue reads may be
// fetched meanwhile.
template <typename T, typename TA, typename TB, typename Epilogue, typename Prepare = Nothing>
void Gemm(Threads& threads, int64_t M, int64_t N, int64_t K, const Operand<TA>& a,
          const Operand<TB>& b, const Epilogue& epilogue, const Prepare& prepare = {}) {
  using P = typename PanelsOf<T>::Type;
  Side<TA, P::kMR, P::template PackA<TA>> side_a{a, M};
  Side<TB, P::kNR, P::template PackB<TB>> side_b{b, N};
  if (M >= N)
    Product<P, false>(threads, K, side_a, side_b, epilogue, prepare);
  else
    Product<P, true>(threads, K, side_a, side_b, epilogue, prepare);
}

}  // namespace llmc::LLMC_ISA
