// mlp (llmc_jax/ops/mlp.py): two linear layers with a GELU between (Hendrycks & Gimpel 2016, in its
// tanh form), which is applied to each tile of the first product and differentiated in each tile of
// the second's backward, where gelu(fch) comes for nothing and so need not have been kept. Nor need
// fch: its tile is made again beside that of the second's backward.
// T, W, N and C as in matmul.h; H channels between.
#pragma once

#include "cpu/gelu.h"
#include "cpu/matmul.h"

namespace llmc::LLMC_ISA {

// Linear's results as fch: rounded to T, with the bias fcb (H).
template <typename T>
Vec Hidden(Vec v, const float* fcb, int64_t h, int64_t some) {
  return Rounded<T>(v + LoadUpTo(fcb + h, some));
}

// fch (N,H) = inp fcw^T + fcb, fch_gelu (N,H) = gelu(fch),
// out (N,C) = fch_gelu fcprojw^T + fcprojb; fch is null where it is not wanted
template <typename T, typename W>
void MlpForward(Threads& threads, int64_t N, int64_t C, int64_t H, const T* inp, const W* fcw,
                const float* fcb, const W* fcprojw, const float* fcprojb, T* out, T* fch,
                T* fch_gelu) {
  auto activate = [=](Vec v, int64_t h, auto some) {
    const Vec rounded = Hidden<T>(v, fcb, h, some), x = GeluDomain(rounded);
    return Vecs<2>{rounded, x * GeluSigmoid<T>(x)};
  };
  if (fch)
    Linear(threads, N, C, H, inp, fcw, [=](const Tile& tile) {
      StreamTile(tile, H, {fch, fch_gelu},
                 [&](int64_t, int64_t h, Vec v, auto some) { return activate(v, h, some); });
    });
  else
    Linear(threads, N, C, H, inp, fcw, [=](const Tile& tile) {
      StreamTile(tile, H, {fch_gelu}, [&](int64_t, int64_t h, Vec v, auto some) {
        return Vecs<1>{activate(v, h, some).of[1]};
      });
    });
  MatmulForward(threads, N, H, C, fch_gelu, fcprojw, fcprojb, out);
}

// What both layers' backward needs of the hidden layer: fch_gelu and dfch (N,H), and dfcb.
template <typename T>
struct HiddenGradients {
  T *fch_gelu, *dfch;
  typename BiasOfTiles<T>::Sums bias;

  // From a tile of dfch_gelu, and fch of its elements as fch(row, column, some).
  template <typename Fch>
  [[gnu::always_inline]] void Stream(const Tile& tile, int64_t H, const Fch& fch) const {
    StreamTile(tile, H, {fch_gelu, dfch}, [&](int64_t n, int64_t h, Vec dgelu, auto some) {
      const Vec x = GeluDomain(fch(n, h, some)), s = GeluSigmoid<T>(x);
      const Vec d = Rounded<T>(dgelu * GeluSlope(x, s));
      bias.Add(n, h, d);
      return Vecs<2>{x * s, d};
    });
  }
};

// They, from fch.
template <typename T, typename W>
void HiddenBackward(Threads& threads, int64_t N, int64_t C, int64_t H, const T* fch, const T* dout,
                    const W* fcprojw, const HiddenGradients<T>& hidden) {
  Gemm<T>(
      threads, N, H, C, Rows(dout, C), Columns(fcprojw, H),
      // inlined where it runs between the products of tiles
      [=](const Tile& tile) __attribute__((always_inline)) {
        TileOf<T> fch_tile(tile, fch, H);
        hidden.Stream(tile, H, [&](int64_t n, int64_t h, auto) { return fch_tile.Get(n, h); });
      },
      [&](const Tile& tile) { FetchTile(tile, fch, H); });
}

// They, and fch is made again: at once with dfch_gelu, or before it.
template <typename T, typename W>
void HiddenBackwardAgain(Threads& threads, int64_t N, int64_t C, int64_t H, const T* dout,
                         const T* inp, const W* fcw, const float* fcb, const W* fcprojw,
                         const HiddenGradients<T>& hidden) {
  if constexpr (PanelsOf<T>::Type::kTiles)
    if (TwoAtOnce<T>(N, C)) {
      const Operand<T> rows[] = {Rows(inp, C), Rows(dout, C)};
      const Operand<W> weights[] = {Rows(fcw, C), Columns(fcprojw, H)};
      return TwoGemms<T>(threads, N, H, C, rows, weights,
                         [=](const Tile& tile) __attribute__((always_inline)) {
                           hidden.Stream(tile, H, [&](int64_t n, int64_t h, auto some) {
                             const float* at = tile.first + (n - tile.row) * tile.ld;
                             return Hidden<T>(Load(at + (h - tile.column)), fcb, h, some);
                           });
                         });
    }
  MatmulForward(threads, N, C, H, inp, fcw, fcb, hidden.dfch);
  HiddenBackward(threads, N, C, H, hidden.dfch, dout, fcprojw, hidden);
}

// fch_gelu and dfch (N,H) are for use in between; dfch may be fch, and fch null: then it is made
// again.
template <typename T, typename W>
void MlpBackward(Threads& threads, int64_t N, int64_t C, int64_t H, const T* fch, const T* dout,
                 const T* inp, const W* fcw, const float* fcb, const W* fcprojw, T* dinp, T* dfcw,
                 float* dfcb, T* dfcprojw, float* dfcprojb, T* fch_gelu, T* dfch) {
  BiasOfTiles<T> bias(N, H);
  const HiddenGradients<T> hidden{fch_gelu, dfch, bias.OfTiles()};
  if (fch)
    HiddenBackward(threads, N, C, H, fch, dout, fcprojw, hidden);
  else
    HiddenBackwardAgain(threads, N, C, H, dout, inp, fcw, fcb, fcprojw, hidden);
  bias.Sum(threads, dfcb);
  BiasGradient(threads, N, C, dout, dfcprojb);
  WeightGradient(threads, N, H, C, Columns(dout, C), fch_gelu, dfcprojw);
  MatmulGradients(threads, N, C, H, dfch, inp, fcw, dinp, dfcw);
}

}  // namespace llmc::LLMC_ISA
