// Gemm: every matrix product of the kernels, on any instruction set.
//
// C (M,N) = A (M,K) B (N,K)^T, summed in float. The smaller of A and B is packed whole, by all
// threads; then each task takes some rows of the other, packs them for itself and multiplies them
// panel by panel with what was packed (Goto & van de Geijn 2008). What is done with C is the
// caller's: `epilogue` gets each finished tile, or some rows of it, while it is in the first-level
// cache, so bias, GELU and the store cost no pass over memory. With AMX they are done between the
// products of the next tile, and it is their instructions that count (measured in
// benchmarks/results/cpu_step.md): an epilogue is copied, and should hold what it needs by value.
#pragma once

#include "cpu/micro.h"
#include "cpu/prefetch.h"
#include "cpu/tasks.h"

namespace llmc::LLMC_ISA {

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
// and whole vectors may be read where a row ends in the middle of one. Where two products are made
// at once, this is of the second and `first` of the first.
struct Tile {
  int64_t row, column, rows, columns;
  const float* data;
  int64_t ld;
  const float* first = data;
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

// The rows of the streamed operand, in one piece for each task: few enough for the second-level
// cache, and towards the end fewer and fewer, so that no thread waits long for the last one. (With
// equal pieces two threads waited 4.4 % of a training step's time, with these 2.5 %.)
class Pieces {
 public:
  Pieces(int64_t rows, int64_t panel, int64_t threads, int64_t most)
      : rows_(rows),
        panel_(panel),
        most_(most / panel),
        least_(Max<int64_t>(1, Min(kLeast / panel, rows / panel / (4 * threads)))),
        share_(threads) {}

  // The longest, which is the first.
  int64_t Most() const { return End(0); }
  int64_t End(int64_t begin) const {
    const int64_t panels = CeilDiv(rows_ - begin, panel_);
    const int64_t some = Max(least_, Min(most_, CeilDiv(panels, share_)));
    return Min(rows_, begin + some * panel_);
  }
  int64_t Begin(int64_t piece) const {
    int64_t begin = 0;
    for (; piece > 0 && begin < rows_; --piece) begin = End(begin);
    return begin;
  }
  int64_t Count() const {
    int64_t count = 0;
    for (int64_t begin = 0; begin < rows_; begin = End(begin)) ++count;
    return count;
  }

 private:
  static constexpr int64_t kLeast = 128;  // rows, for which all that is kept is read once more
  const int64_t rows_, panel_, most_, least_, share_;
};

// The epilogue of the tile that was made last: it waits until the next one is made by tile
// registers, and a few rows at a time are done meanwhile. The epilogue is a copy: what it finds
// through references costs each of those few rows several instructions, and all of them 4 to 8 % of
// a product.
template <typename P, typename Epilogue>
class Behind {
 public:
  explicit Behind(const Epilogue& epilogue) : epilogue_(epilogue) {}

  void Begin(const Tile& tile) {
    tile_ = tile;
    whole_ = tile.rows == P::kMR && tile.columns == P::kNR;
  }

  // Some rows, of a whole tile: their number is known where this is compiled.
  [[gnu::always_inline]] void Some() {
    if (!whole_) return;
    epilogue_(Tile{tile_.row, tile_.column, kRows, P::kNR, tile_.data, P::kNR, tile_.first});
    tile_.row += kRows, tile_.rows -= kRows;
    tile_.data += kRows * P::kNR, tile_.first += kRows * P::kNR;
    whole_ = tile_.rows > 0;
  }
  void Rest() {
    if (tile_.rows > 0) Finish();
  }

 private:
  static constexpr int64_t kRows = 2;

  [[gnu::noinline]] void Finish() {
    epilogue_(tile_);
    tile_.rows = 0, whole_ = false;
  }

  const Epilogue epilogue_;
  Tile tile_{};
  bool whole_ = false;
};

// Elements along K of so many steps, and the other way round.
template <typename P>
int64_t ElementsOf(int64_t steps) {
  return steps / P::kUnit * P::kDepth;
}
template <typename P>
int64_t StepsOf(int64_t K) {
  return CeilDiv(K, P::kDepth) * P::kUnit;
}

// A side that is packed whole, by all threads, for a product of `steps`:
// [block of block_steps steps][panel of kRows rows][...].
template <typename P, int kRows>
class PackedSide {
 public:
  template <typename Side>
  PackedSide(Threads& threads, const Side& side, int64_t K, int64_t steps, int64_t block_steps)
      : padded_(RoundUp(side.rows, kFilled)), words_(padded_ * steps) {
    const int64_t groups = CeilDiv(side.rows, kGroup);
    ParallelFor(threads, groups * CeilDiv(steps, block_steps), [&](int64_t task) {
      const int64_t y = task % groups * kGroup, s = task / groups * block_steps;
      const int64_t count = Min(kGroup, side.rows - y), some = Min(block_steps, steps - s);
      side.Pack(y, ElementsOf<P>(s), count, K, some, Panel(y, s, some));
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
  constexpr int kTile = P::kMR * P::kNR;
  const int64_t steps = StepsOf<P>(K);
  const int64_t most_steps = P::kTiles ? kTileSteps : kBlockSteps;
  const int64_t block_steps = RoundUp(CeilDiv(steps, CeilDiv(steps, most_steps)), P::kUnit);
  const bool one_block = block_steps >= steps;  // a tile is finished at once: two will do
  const bool no_blocks = P::kTiles && one_block;
  const int64_t kept_block = no_blocks ? RoundUp(kept.rows, kKept) : kBlockN / kKept * kKept;
  const Pieces pieces(streamed.rows, kStreamed, threads.count(), no_blocks ? kOneBlockM : kBlockM);
  // Tile registers have the next panel of B for each tile, so that which way a tile is made does
  // not depend on where a row of A is.
  const int64_t together = P::kTiles && !stream_b ? kTogether * kKept : kKept;

  const PackedSide<P, kKept> packed(threads, kept, K, steps, block_steps);
  ParallelFor(threads, pieces.Count(), [&](int64_t task) {
    [[maybe_unused]] typename P::Scope scope;
    const int64_t x0 = pieces.Begin(task), xs = pieces.End(x0) - x0;
    const int64_t x_panels = CeilDiv(xs, kStreamed);
    // packed a block of steps at a time, unless it is needed several times and fits the cache
    const bool whole = kept.rows > kept_block && pieces.Most() * steps <= kWholeWords;
    auto* words = Scratch<uint32_t>(Slot::kA,
                                    streamed.Words(pieces.Most(), whole ? steps : block_steps));
    auto* c =
        Scratch<float>(Slot::kC, (one_block ? 2 : x_panels * (kept_block / kKept)) * kTile);
    int64_t made = 0;
    Behind<P, Epilogue> behind(epilogue);
    for (int64_t y0 = 0; y0 < kept.rows; y0 += kept_block)
      for (int64_t s = 0; s < steps; s += block_steps) {
        const int64_t ys = Min(kept_block, kept.rows - y0), some = Min(block_steps, steps - s);
        const bool pack = y0 == 0 || !whole, more = s + some < steps;
        uint32_t* block = words + (whole ? s * x_panels * kStreamed : 0);
        if (pack) streamed.Pack(x0, ElementsOf<P>(s), xs, K, some, block);
        // next come the block behind this one, the first one again, or the first of the task this
        // thread will get
        const bool same = more || (!whole && y0 + kept_block < kept.rows);
        const int64_t x_next = same ? x0 : pieces.Begin(task + threads.count());
        const int64_t k_next = more ? ElementsOf<P>(s + some) : 0;
        [[maybe_unused]] Soon soon = SoonPacked(
            streamed.m.From(x_next, k_next), pack ? pieces.End(x_next) - x_next : 0,
            Min(K - k_next, ElementsOf<P>(block_steps)), x_panels * CeilDiv(ys, kKept));
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
            const int64_t times = some / P::kUnit * P::kTurns;
            const float* next_c = c + (at + (stream_b ? 1 : x_panels)) * kTile;
            Ahead kept_ahead = ShareOf(kept_panel + together * some, kKept * some, x / kStreamed,
                                       x_panels, times);
            Ahead c_ahead{next_c, s > 0 ? CeilDiv(kTile / 16, times) : 0};
            auto meanwhile = [&]() __attribute__((always_inline)) {
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
            soon.Some();
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

// Two products of the same sizes, by tile registers and with K in one block: calls epilogue(tile)
// for every tile of both. Each b is packed whole; each task streams rows of both a. A panel of a is
// multiplied with two of b, first of one product and then of the other: so every second multiply
// has an epilogue beside it. (With four panels three have one after the other: 1 to 2 % slower.)
template <typename P, typename A, typename B, typename Epilogue>
void TwoProducts(Threads& threads, int64_t K, const A (&a)[2], const B (&b)[2],
                 const Epilogue& epilogue) {
  constexpr int64_t kTile = P::kMR * P::kNR, kPair = 2 * P::kNR;
  const int64_t steps = StepsOf<P>(K), columns = b[0].rows, times = steps / P::kUnit * P::kTurns;
  const Pieces pieces(a[0].rows, P::kMR, threads.count(), kBlockM);
  using Kept = PackedSide<P, P::kNR>;
  const Kept kept[] = {Kept(threads, b[0], K, steps, steps), Kept(threads, b[1], K, steps, steps)};
  ParallelFor(threads, pieces.Count(), [&](int64_t task) {
    [[maybe_unused]] typename P::Scope scope;
    const int64_t x0 = pieces.Begin(task), xs = pieces.End(x0) - x0;
    const int64_t words = a[0].Words(pieces.Most(), steps);
    auto* panels = Scratch<uint32_t>(Slot::kA, 2 * words);
    for (int which = 0; which < 2; ++which)
      a[which].Pack(x0, 0, xs, K, steps, panels + which * words);
    // the first's tiles of a pair, and one that the epilogue still reads; the second's in turn
    constexpr int64_t kFirsts = 3;
    auto* c = Scratch<float>(Slot::kC, (kFirsts + 2) * kTile);
    int64_t pair = 0, made = 0;
    Behind<P, Epilogue> behind(epilogue);
    for (int64_t y0 = 0; y0 < columns; y0 += kPair)
      for (int64_t x = 0; x < xs; x += P::kMR, pair += 2)
        for (int which = 0; which < 2; ++which)
          for (int64_t y = y0; y < Min(columns, y0 + kPair); y += P::kNR) {
            float* first = c + (pair + (y - y0) / P::kNR) % kFirsts * kTile;
            float* tile = which == 0 ? first : c + (kFirsts + made++ % 2) * kTile;
            const uint32_t* kept_panel = kept[which].Panel(y, 0, steps);
            Ahead kept_ahead = ShareOf(kept_panel + kPair * steps, P::kNR * steps, x / P::kMR,
                                       CeilDiv(xs, P::kMR), times);
            P::template Multiply</*b_passes=*/true>(
                steps, panels + which * words + x * steps, kept_panel, tile, P::kNR,
                /*accumulate=*/false, /*backwards=*/y / P::kNR % 2,
                [&]() __attribute__((always_inline)) {
                  kept_ahead.template Some<2>();
                  behind.Some();
                });
            behind.Rest();
            if (which == 1)
              behind.Begin({x0 + x, y, Min<int64_t>(P::kMR, xs - x),
                            Min<int64_t>(P::kNR, columns - y), tile, P::kNR, first});
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

// Whether TwoGemms makes these: of so many rows that reading b for each task costs little, and of a
// K that fits one block.
template <typename T>
bool TwoAtOnce(int64_t M, int64_t K) {
  return M >= kBlockM && StepsOf<typename PanelsOf<T>::Type>(K) <= kTileSteps;
}

// Two of them, where there are tile registers: calls epilogue(tile), which has the tiles of both.
template <typename T, typename TA, typename TB, typename Epilogue>
void TwoGemms(Threads& threads, int64_t M, int64_t N, int64_t K, const Operand<TA> (&a)[2],
              const Operand<TB> (&b)[2], const Epilogue& epilogue) {
  using P = typename PanelsOf<T>::Type;
  const Side<TA, P::kMR, P::template PackA<TA>> sides_a[] = {{a[0], M}, {a[1], M}};
  const Side<TB, P::kNR, P::template PackB<TB>> sides_b[] = {{b[0], N}, {b[1], N}};
  TwoProducts<P>(threads, K, sides_a, sides_b, epilogue);
}

}  // namespace llmc::LLMC_ISA
