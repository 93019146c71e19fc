// Handlers of mlp: see mlp.h.
#include "cpu/handler.h"

namespace llmc {
namespace {

// The sizes of a call of mlp: inp (B,T,C), fcw (H,C), fcprojw (C,H).
struct MlpSizes {
  int64_t B, T, C, H;

  MlpSizes(Checker& check, const Any& inp, const Any& fcw, const F32& fcb, const Any& fcprojw,
           const F32& fcprojb)
      : B(check.Size("inp", inp, 3, 0)),
        T(check.Size("inp", inp, 3, 1)),
        C(check.Size("inp", inp, 3, 2)),
        H(check.Size("fcw", fcw, 2, 0)) {
    check.Shape("fcw", fcw, {H, C});
    check.Shape("fcb", fcb, {H});
    check.Shape("fcprojw", fcprojw, {C, H});
    check.Shape("fcprojb", fcprojb, {C});
    check.SameType("fcprojw", fcprojw, fcw);
  }
};

ffi::Error MlpForward(ffi::ThreadPool pool, Any inp, Any fcw, F32 fcb, Any fcprojw, F32 fcprojb,
                      AnyOut out, AnyOut fch, AnyOut fch_gelu) {
  Checker check("llmc_mlp_forward");
  MlpSizes s(check, inp, fcw, fcb, fcprojw, fcprojb);
  check.Like("out", *out, inp, {s.B, s.T, s.C});
  LikeOrLeftOut(check, "fch", *fch, inp, s.B, s.T, s.H);
  check.Like("fch_gelu", *fch_gelu, inp, {s.B, s.T, s.H});
  return RunOn(check, pool, inp.element_type(), fcw, [&](Threads& threads, auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    On<T, W>().mlp_forward(threads, s.B * s.T, s.C, s.H, In<T>(inp), In<W>(fcw), fcb.typed_data(),
                           In<W>(fcprojw), fcprojb.typed_data(), Out<T>(out), OutOrNull<T>(fch),
                           Out<T>(fch_gelu));
  });
}

ffi::Error MlpBackward(ffi::ThreadPool pool, Any fch, Any dout, Any inp, Any fcw, F32 fcb,
                       Any fcprojw, F32 fcprojb, AnyOut dinp, AnyOut dfcw, F32Out dfcb,
                       AnyOut dfcprojw, F32Out dfcprojb, AnyOut fch_gelu, AnyOut dfch) {
  Checker check("llmc_mlp_backward");
  MlpSizes s(check, inp, fcw, fcb, fcprojw, fcprojb);
  LikeOrLeftOut(check, "fch", fch, inp, s.B, s.T, s.H);
  check.Like("dout", dout, inp, {s.B, s.T, s.C});
  check.Like("dinp", *dinp, inp, {s.B, s.T, s.C});
  LikeOrLeftOut(check, "dfcw", *dfcw, inp, s.H, s.C);
  check.Shape("dfcb", *dfcb, {s.H});
  LikeOrLeftOut(check, "dfcprojw", *dfcprojw, inp, s.C, s.H);
  check.Shape("dfcprojb", *dfcprojb, {s.C});
  check.Like("fch_gelu", *fch_gelu, inp, {s.B, s.T, s.H});
  check.Like("dfch", *dfch, inp, {s.B, s.T, s.H});
  return RunOn(check, pool, inp.element_type(), fcw, [&](Threads& threads, auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    On<T, W>().mlp_backward(threads, s.B * s.T, s.C, s.H, InOrNull<T>(fch), In<T>(dout),
                            In<T>(inp), In<W>(fcw), fcb.typed_data(), In<W>(fcprojw), Out<T>(dinp),
                            OutOrNull<T>(dfcw), Out(dfcb), OutOrNull<T>(dfcprojw), Out(dfcprojb),
                            Out<T>(fch_gelu), Out<T>(dfch));
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(llmc_mlp_forward, MlpForward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Any>()   // inp (B,T,C)
                                  .Arg<Any>()   // fcw (H,C)
                                  .Arg<F32>()   // fcb (H)
                                  .Arg<Any>()   // fcprojw (C,H)
                                  .Arg<F32>()   // fcprojb (C)
                                  .Ret<Any>()   // out (B,T,C)
                                  .Ret<Any>()   // fch (B,T,H) or (0,T,H)
                                  .Ret<Any>());  // fch_gelu (B,T,H)

XLA_FFI_DEFINE_HANDLER_SYMBOL(llmc_mlp_backward, MlpBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Any>()   // fch (B,T,H) or (0,T,H)
                                  .Arg<Any>()   // dout (B,T,C)
                                  .Arg<Any>()   // inp (B,T,C)
                                  .Arg<Any>()   // fcw (H,C)
                                  .Arg<F32>()   // fcb (H)
                                  .Arg<Any>()   // fcprojw (C,H)
                                  .Arg<F32>()   // fcprojb (C)
                                  .Ret<Any>()   // dinp (B,T,C)
                                  .Ret<Any>()   // dfcw (H,C) or (0,C)
                                  .Ret<F32>()   // dfcb (H)
                                  .Ret<Any>()   // dfcprojw (C,H) or (0,H)
                                  .Ret<F32>()   // dfcprojb (C)
                                  .Ret<Any>()   // fch_gelu (B,T,H), for use in between
                                  .Ret<Any>());  // dfch (B,T,H), the same; may be fch

}  // namespace llmc
