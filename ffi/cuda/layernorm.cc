// Handlers of layernorm and residual_layernorm: see layernorm.cu.
#include "cuda/handler.h"

namespace llmc {
namespace {

// Checks of activations (B,T,C) and what goes with them.
struct Rows {
  int64_t B, T, C;

  Rows(Checker& check, const char* name, const Any& x)
      : B(check.Size(name, x, 3, 0)), T(check.Size(name, x, 3, 1)), C(check.Size(name, x, 3, 2)) {
    check.FloatType(name, x);
    check.Require(B * T < int64_t{1} << 31 && C < 1 << 24,
                  std::string(name) + " is " + ShapeString(x.dimensions()) + ", too large");
  }
  void Activation(Checker& check, const char* name, const Any& x, const Any& like) const {
    check.Shape(name, x, {B, T, C});
    check.SameType(name, x, like);
  }
  int n() const { return static_cast<int>(B * T); }
  int c() const { return static_cast<int>(C); }
};

ffi::Error ResidualLayernormForward(StreamArgument stream, Any residual, Any branch, F32 weight,
                                    F32 bias, AnyOut sum, AnyOut out, F32Out mean, F32Out rstd,
                                    float eps) {
  Checker check("llmc_cuda_residual_layernorm_forward");
  Rows rows(check, "residual", residual);
  rows.Activation(check, "branch", branch, residual);
  rows.Activation(check, "sum", *sum, residual);
  rows.Activation(check, "out", *out, residual);
  check.Shape("weight", weight, {rows.C});
  check.Shape("bias", bias, {rows.C});
  check.Shape("mean", *mean, {rows.B, rows.T});
  check.Shape("rstd", *rstd, {rows.B, rows.T});
  return Run(check, [&] {
    return cuda::ResidualLayernormForward(
        ToStream(stream), TypeOf(residual), rows.n(), rows.c(), eps, residual.untyped_data(),
        branch.untyped_data(), weight.typed_data(), bias.typed_data(), Out(sum), Out(out),
        Out(mean), Out(rstd));
  });
}

// dsum: null without a residual connection.
ffi::Error Backward(const char* name, StreamArgument& stream, const F32& mean, const F32& rstd,
                    const Any* dsum, const Any& dout, const Any& inp, const F32& weight,
                    AnyOut& dinp, F32Out& dweight, F32Out& dbias, F32Out& partials) {
  Checker check(name);
  Rows rows(check, "inp", inp);
  if (dsum) rows.Activation(check, "dsum", *dsum, inp);
  rows.Activation(check, "dout", dout, inp);
  rows.Activation(check, "dinp", *dinp, inp);
  check.Shape("mean", mean, {rows.B, rows.T});
  check.Shape("rstd", rstd, {rows.B, rows.T});
  check.Shape("weight", weight, {rows.C});
  check.Shape("dweight", *dweight, {rows.C});
  check.Shape("dbias", *dbias, {rows.C});
  int64_t blocks = check.Size("partials", *partials, 3, 0);
  check.Shape("partials", *partials, {blocks, 2, rows.C});
  return Run(check, [&] {
    return cuda::LayernormBackward(
        ToStream(stream), TypeOf(inp), rows.n(), rows.c(), mean.typed_data(), rstd.typed_data(),
        dsum ? dsum->untyped_data() : nullptr, dout.untyped_data(), inp.untyped_data(),
        weight.typed_data(), Out(dinp), Out(dweight), Out(dbias), Out(partials),
        static_cast<int>(blocks));
  });
}

ffi::Error LayernormBackward(StreamArgument stream, F32 mean, F32 rstd, Any dout, Any inp,
                             F32 weight, AnyOut dinp, F32Out dweight, F32Out dbias,
                             F32Out partials) {
  return Backward("llmc_cuda_layernorm_backward", stream, mean, rstd, nullptr, dout, inp, weight,
                  dinp, dweight, dbias, partials);
}

ffi::Error ResidualLayernormBackward(StreamArgument stream, F32 mean, F32 rstd, Any dsum, Any dout,
                                     Any sum, F32 weight, AnyOut dinp, F32Out dweight,
                                     F32Out dbias, F32Out partials) {
  return Backward("llmc_cuda_residual_layernorm_backward", stream, mean, rstd, &dsum, dout, sum,
                  weight, dinp, dweight, dbias, partials);
}

}  // namespace

LLMC_CUDA_HANDLER(llmc_cuda_layernorm_backward, LayernormBackward,
                  BindStream()
                      .Arg<F32>()   // mean (B,T)
                      .Arg<F32>()   // rstd (B,T)
                      .Arg<Any>()   // dout (B,T,C)
                      .Arg<Any>()   // inp (B,T,C)
                      .Arg<F32>()   // weight (C)
                      .Ret<Any>()   // dinp (B,T,C)
                      .Ret<F32>()   // dweight (C)
                      .Ret<F32>()   // dbias (C)
                      .Ret<F32>());  // partials (blocks,2,C): scratch

LLMC_CUDA_HANDLER(llmc_cuda_residual_layernorm_forward, ResidualLayernormForward,
                  BindStream()
                      .Arg<Any>()  // residual (B,T,C)
                      .Arg<Any>()  // branch (B,T,C)
                      .Arg<F32>()  // weight (C)
                      .Arg<F32>()  // bias (C)
                      .Ret<Any>()  // sum (B,T,C)
                      .Ret<Any>()  // out (B,T,C)
                      .Ret<F32>()  // mean (B,T)
                      .Ret<F32>()  // rstd (B,T)
                      .Attr<float>("eps"));

LLMC_CUDA_HANDLER(llmc_cuda_residual_layernorm_backward, ResidualLayernormBackward,
                  BindStream()
                      .Arg<F32>()   // mean (B,T)
                      .Arg<F32>()   // rstd (B,T)
                      .Arg<Any>()   // dsum (B,T,C)
                      .Arg<Any>()   // dout of the layernorm (B,T,C)
                      .Arg<Any>()   // sum (B,T,C)
                      .Arg<F32>()   // weight (C)
                      .Ret<Any>()   // dinp (B,T,C)
                      .Ret<F32>()   // dweight (C)
                      .Ret<F32>()   // dbias (C)
                      .Ret<F32>());  // partials (blocks,2,C): scratch

}  // namespace llmc
