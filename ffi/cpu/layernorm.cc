// Handlers of layernorm and residual_layernorm: see layernorm.h.
#include "cpu/handler.h"

namespace llmc {
namespace {

struct Sizes {
  int64_t B, T, C;

  Sizes(Checker& check, const Any& inp)
      : B(check.Size("inp", inp, 3, 0)),
        T(check.Size("inp", inp, 3, 1)),
        C(check.Size("inp", inp, 3, 2)) {}
};

ffi::Error LayerNormForward(ffi::ThreadPool pool, Any inp, F32 weight, F32 bias, AnyOut out,
                            F32Out mean, F32Out rstd, float eps) {
  Checker check("llmc_layernorm_forward");
  Sizes s(check, inp);
  check.Shape("weight", weight, {s.C});
  check.Shape("bias", bias, {s.C});
  check.Like("out", *out, inp, {s.B, s.T, s.C});
  check.Shape("mean", *mean, {s.B, s.T});
  check.Shape("rstd", *rstd, {s.B, s.T});
  return RunOn(check, pool, inp, [&](Threads& threads, auto t) {
    using T = decltype(t);
    On<T>().layernorm_forward(threads, s.B * s.T, s.C, In<T>(inp), nullptr, weight.typed_data(),
                              bias.typed_data(), eps, nullptr, Out<T>(out), Out(mean),
                              Out(rstd));
  });
}

ffi::Error LayerNormBackward(ffi::ThreadPool pool, F32 mean, F32 rstd, Any dout, Any inp,
                             F32 weight, F32 /*bias*/, AnyOut dinp, F32Out dweight, F32Out dbias,
                             float /*eps*/) {
  Checker check("llmc_layernorm_backward");
  Sizes s(check, inp);
  check.Shape("mean", mean, {s.B, s.T});
  check.Shape("rstd", rstd, {s.B, s.T});
  check.Shape("weight", weight, {s.C});
  check.Like("dout", dout, inp, {s.B, s.T, s.C});
  check.Like("dinp", *dinp, inp, {s.B, s.T, s.C});
  check.Shape("dweight", *dweight, {s.C});
  check.Shape("dbias", *dbias, {s.C});
  return RunOn(check, pool, inp, [&](Threads& threads, auto t) {
    using T = decltype(t);
    On<T>().layernorm_backward(threads, s.B * s.T, s.C, mean.typed_data(), rstd.typed_data(),
                               nullptr, In<T>(dout), In<T>(inp), weight.typed_data(), Out<T>(dinp),
                               Out(dweight), Out(dbias));
  });
}

ffi::Error ResidualLayerNormForward(ffi::ThreadPool pool, Any residual, Any branch, F32 weight,
                                    F32 bias, AnyOut sum, AnyOut out, F32Out mean, F32Out rstd,
                                    float eps) {
  Checker check("llmc_residual_layernorm_forward");
  Sizes s(check, residual);
  check.Shape("weight", weight, {s.C});
  check.Shape("bias", bias, {s.C});
  check.Like("branch", branch, residual, {s.B, s.T, s.C});
  check.Like("sum", *sum, residual, {s.B, s.T, s.C});
  check.Like("out", *out, residual, {s.B, s.T, s.C});
  check.Shape("mean", *mean, {s.B, s.T});
  check.Shape("rstd", *rstd, {s.B, s.T});
  return RunOn(check, pool, residual, [&](Threads& threads, auto t) {
    using T = decltype(t);
    On<T>().layernorm_forward(threads, s.B * s.T, s.C, In<T>(residual), In<T>(branch),
                              weight.typed_data(), bias.typed_data(), eps, Out<T>(sum),
                              Out<T>(out), Out(mean), Out(rstd));
  });
}

ffi::Error ResidualLayerNormBackward(ffi::ThreadPool pool, F32 mean, F32 rstd, Any dsum, Any dout,
                                     Any sum, F32 weight, F32 /*bias*/, AnyOut dinp,
                                     F32Out dweight, F32Out dbias, float /*eps*/) {
  Checker check("llmc_residual_layernorm_backward");
  Sizes s(check, sum);
  check.Shape("mean", mean, {s.B, s.T});
  check.Shape("rstd", rstd, {s.B, s.T});
  check.Shape("weight", weight, {s.C});
  check.Like("dsum", dsum, sum, {s.B, s.T, s.C});
  check.Like("dout", dout, sum, {s.B, s.T, s.C});
  check.Like("dinp", *dinp, sum, {s.B, s.T, s.C});
  check.Shape("dweight", *dweight, {s.C});
  check.Shape("dbias", *dbias, {s.C});
  return RunOn(check, pool, sum, [&](Threads& threads, auto t) {
    using T = decltype(t);
    On<T>().layernorm_backward(threads, s.B * s.T, s.C, mean.typed_data(), rstd.typed_data(),
                               In<T>(dsum), In<T>(dout), In<T>(sum), weight.typed_data(),
                               Out<T>(dinp), Out(dweight), Out(dbias));
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(llmc_layernorm_forward, LayerNormForward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Any>()  // inp (B,T,C)
                                  .Arg<F32>()  // weight (C)
                                  .Arg<F32>()  // bias (C)
                                  .Ret<Any>()  // out (B,T,C)
                                  .Ret<F32>()  // mean (B,T)
                                  .Ret<F32>()  // rstd (B,T)
                                  .Attr<float>("eps"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(llmc_layernorm_backward, LayerNormBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<F32>()  // mean (B,T)
                                  .Arg<F32>()  // rstd (B,T)
                                  .Arg<Any>()  // dout (B,T,C)
                                  .Arg<Any>()  // inp (B,T,C)
                                  .Arg<F32>()  // weight (C)
                                  .Arg<F32>()  // bias (C)
                                  .Ret<Any>()  // dinp (B,T,C)
                                  .Ret<F32>()  // dweight (C)
                                  .Ret<F32>()  // dbias (C)
                                  .Attr<float>("eps"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(llmc_residual_layernorm_forward, ResidualLayerNormForward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Any>()  // residual (B,T,C)
                                  .Arg<Any>()  // branch (B,T,C)
                                  .Arg<F32>()  // weight (C)
                                  .Arg<F32>()  // bias (C)
                                  .Ret<Any>()  // sum (B,T,C)
                                  .Ret<Any>()  // out (B,T,C)
                                  .Ret<F32>()  // mean (B,T)
                                  .Ret<F32>()  // rstd (B,T)
                                  .Attr<float>("eps"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(llmc_residual_layernorm_backward, ResidualLayerNormBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<F32>()  // mean (B,T)
                                  .Arg<F32>()  // rstd (B,T)
                                  .Arg<Any>()  // dsum (B,T,C)
                                  .Arg<Any>()  // dout (B,T,C)
                                  .Arg<Any>()  // sum (B,T,C)
                                  .Arg<F32>()  // weight (C)
                                  .Arg<F32>()  // bias (C)
                                  .Ret<Any>()  // dinp (B,T,C)
                                  .Ret<F32>()  // dweight (C)
                                  .Ret<F32>()  // dbias (C)
                                  .Attr<float>("eps"));

}  // namespace llmc
