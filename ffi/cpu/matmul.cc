// Handlers of matmul and mlp: see matmul.h and mlp.h.
#include "cpu/handler.h"

namespace llmc {
namespace {

// The gradient of a weight is (OC,C), or (0,C) where it is to be left in its factors (factors.h).
void CheckWeightGradient(Checker& check, const char* name, const Any& dweight, const Any& inp,
                         int64_t OC, int64_t C) {
  const bool left = dweight.dimensions().size() == 2 && dweight.dimensions()[0] == 0;
  check.Like(name, dweight, inp, {left ? 0 : OC, C});
}
// A result that may be left out, being empty.
template <typename T>
T* OutOrNull(AnyOut& buffer) {
  return buffer->element_count() ? Out<T>(buffer) : nullptr;
}

ffi::Error MatmulForward(ffi::ThreadPool pool, Any inp, Any weight, F32 bias, AnyOut out) {
  Checker check("llmc_matmul_forward");
  int64_t B = check.Size("inp", inp, 3, 0), T_ = check.Size("inp", inp, 3, 1);
  int64_t C = check.Size("inp", inp, 3, 2), OC = check.Size("weight", weight, 2, 0);
  check.Shape("weight", weight, {OC, C});
  check.Shape("bias", bias, {OC});
  check.Shape("out", *out, {B, T_, OC});
  check.SameType("out", *out, inp);
  return RunOn(check, pool, inp.element_type(), weight, [&](Threads& threads, auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    On<T, W>().matmul_forward(threads, B * T_, C, OC, In<T>(inp), In<W>(weight),
                              bias.typed_data(), Out<T>(out));
  });
}

ffi::Error MatmulBackward(ffi::ThreadPool pool, Any dout, Any inp, Any weight, F32 /*bias*/,
                          AnyOut dinp, AnyOut dweight, F32Out dbias) {
  Checker check("llmc_matmul_backward");
  int64_t B = check.Size("inp", inp, 3, 0), T_ = check.Size("inp", inp, 3, 1);
  int64_t C = check.Size("inp", inp, 3, 2), OC = check.Size("weight", weight, 2, 0);
  check.Shape("weight", weight, {OC, C});
  check.Like("dout", dout, inp, {B, T_, OC});
  check.Like("dinp", *dinp, inp, {B, T_, C});
  CheckWeightGradient(check, "dweight", *dweight, inp, OC, C);
  check.Shape("dbias", *dbias, {OC});
  return RunOn(check, pool, inp.element_type(), weight, [&](Threads& threads, auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    On<T, W>().matmul_backward(threads, B * T_, C, OC, In<T>(dout), In<T>(inp), In<W>(weight),
                               Out<T>(dinp), OutOrNull<T>(dweight), Out(dbias));
  });
}

// Of a tensor that may be left out, being empty.
template <typename T>
const T* InOrNull(const Any& buffer) {
  return buffer.element_count() ? In<T>(buffer) : nullptr;
}

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

  // fch is (B,T,H), or (0,T,H) where it is not kept.
  void CheckFch(Checker& check, const Any& fch, const Any& inp) const {
    const bool left = fch.dimensions().size() == 3 && fch.dimensions()[0] == 0;
    check.Like("fch", fch, inp, {left ? 0 : B, T, H});
  }
};

ffi::Error MlpForward(ffi::ThreadPool pool, Any inp, Any fcw, F32 fcb, Any fcprojw, F32 fcprojb,
                      AnyOut out, AnyOut fch, AnyOut fch_gelu) {
  Checker check("llmc_mlp_forward");
  MlpSizes s(check, inp, fcw, fcb, fcprojw, fcprojb);
  check.Like("out", *out, inp, {s.B, s.T, s.C});
  s.CheckFch(check, *fch, inp);
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
  s.CheckFch(check, fch, inp);
  check.Like("dout", dout, inp, {s.B, s.T, s.C});
  check.Like("dinp", *dinp, inp, {s.B, s.T, s.C});
  CheckWeightGradient(check, "dfcw", *dfcw, inp, s.H, s.C);
  check.Shape("dfcb", *dfcb, {s.H});
  CheckWeightGradient(check, "dfcprojw", *dfcprojw, inp, s.C, s.H);
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(llmc_matmul_forward, MatmulForward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Any>()   // inp (B,T,C)
                                  .Arg<Any>()   // weight (OC,C)
                                  .Arg<F32>()   // bias (OC)
                                  .Ret<Any>());  // out (B,T,OC)

XLA_FFI_DEFINE_HANDLER_SYMBOL(llmc_matmul_backward, MatmulBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Any>()   // dout (B,T,OC)
                                  .Arg<Any>()   // inp (B,T,C)
                                  .Arg<Any>()   // weight (OC,C)
                                  .Arg<F32>()   // bias (OC)
                                  .Ret<Any>()   // dinp (B,T,C)
                                  .Ret<Any>()   // dweight (OC,C) or (0,C)
                                  .Ret<F32>());  // dbias (OC)

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
