// Every kernel of every instruction set this machine has, against plain arithmetic in double:
// odd shapes, exact buffers that start as NaN, two calls with other numbers of threads, other
// orders of the tasks and other alignments, which must give the same bits. Here encoder, layernorm
// and the linear layers; attention_test.cc classifier_test.cc optimizer_test.cc have the others.
#include "tests/harness.h"

namespace llmc {
namespace {

template <typename T, typename W>
void TestEncoderForward(Driver& driver, int64_t B, int64_t steps, int64_t C) {
  Random random;
  const int64_t V = 11, N = B * steps;
  auto inp = Tokens(random, N, V);
  auto wte = random.Numbers<W>(V * C), wpe = random.Numbers<W>(steps * C);
  Matrix tokens = RoundedTo<T>(MatrixOf(wte, V, C));
  Matrix positions = RoundedTo<T>(MatrixOf(wpe, steps, C));
  Matrix want(N, C);
  for (int64_t n = 0; n < N; ++n)
    for (int64_t c = 0; c < C; ++c) want[n][c] = Plus(tokens[inp[n]][c], positions[n % steps][c]);

  Shape shape{{"B", B}, {"T", steps}, {"C", C}};
  driver.OnEach(Types<T, W>(), "encoder_forward", shape, [&](auto& kernels, const Check& check) {
    Output<T> out(N * C);
    check.Twice([&](Threads& threads, int call) {
      On<T, W>(kernels).encoder_forward(threads, N, steps, C, inp.data(), wte.data(), wpe.data(),
                                        out.data(call));
    });
    check("out", out, want.data);
  });
}

// 11 tokens for all rows, so they repeat; the twelfth row of dwte stays as it is.
template <typename T>
void TestEncoderBackward(Driver& driver, int64_t B, int64_t steps, int64_t C) {
  Random random;
  const int64_t V = 12, max_steps = steps + 3, N = B * steps;
  auto inp = Tokens(random, N, V - 1);
  auto dout = random.Numbers<T>(N * C);
  auto so_far = random.Numbers<float>(V * C);
  // dwte = [identity, onehot^T] [so_far; dout] (V + N inner), and dwpe alike
  Matrix all(V + N, C), to_token(V, V + N), to_position(max_steps, V + N);
  for (int64_t i = 0; i < V * C; ++i) all.data[i].value = so_far[i];
  for (int64_t i = 0; i < N * C; ++i) all.data[V * C + i].value = Value(dout[i]);
  for (int64_t v = 0; v < V; ++v) to_token[v][v].value = 1;
  for (int64_t n = 0; n < N; ++n)
    to_token[inp[n]][V + n].value = to_position[n % steps][V + n].value = 1;
  Matrix want_dwte = Product(to_token, Transposed(all));
  Matrix want_dwpe = Product(to_position, Transposed(all));
  for (int64_t c = 0; c < C; ++c) want_dwte[V - 1][c].tolerance = 0;

  Shape shape{{"B", B}, {"T", steps}, {"C", C}};
  driver.OnEach(Types<T>(), "encoder_backward", shape, [&](auto& kernels, const Check& check) {
    Output<float> dwte(so_far), dwpe(max_steps * C);
    check.Twice([&](Threads& threads, int call) {
      On<T>(kernels).encoder_backward(threads, B, steps, C, max_steps, dout.data(), inp.data(),
                                      dwte.data(call), dwpe.data(call));
    });
    check("dwte", dwte, want_dwte.data);
    check("dwpe", dwpe, want_dwpe.data);
  });
}

// branch: whether the layernorm is of the sum of two tensors.
template <typename T>
void TestLayerNormForward(Driver& driver, int64_t N, int64_t C, bool with_branch) {
  Random random;
  const float eps = 1e-5f;
  auto inp = random.Numbers<T>(N * C, /*size=*/1, /*center=*/10);
  auto branch = random.Numbers<T>(N * C, /*size=*/4);
  auto weight = random.Numbers<float>(C), bias = random.Numbers<float>(C);
  std::vector<Want> want_sum(N * C);
  for (int64_t i = 0; i < N * C; ++i) want_sum[i] = Plus({Value(inp[i])}, {Value(branch[i])});

  Shape shape{{"N", N}, {"C", C}, {"branch", with_branch}};
  driver.OnEach(Types<T>(), "layernorm_forward", shape, [&](auto& kernels, const Check& check) {
    Output<T> sum(N * C), out(N * C);
    Output<float> mean(N), rstd(N);
    check.Twice([&](Threads& threads, int call) {
      On<T>(kernels).layernorm_forward(threads, N, C, inp.data(),
                                       with_branch ? branch.data() : nullptr, weight.data(),
                                       bias.data(), eps, with_branch ? sum.data(call) : nullptr,
                                       out.data(call), mean.data(call), rstd.data(call));
    });
    if (with_branch) check("sum", sum, want_sum);
    Matrix x = with_branch ? MatrixOf(sum, N, C) : MatrixOf(inp, N, C), want_out(N, C);
    std::vector<Want> want_mean, want_rstd;
    for (int64_t n = 0; n < N; ++n) {
      Statistics want = RowStatistics(x[n], C, eps);
      want_mean.push_back(want.mean);
      want_rstd.push_back(want.rstd);
      for (int64_t c = 0; c < C; ++c)
        want_out[n][c] =
            LayerNorm(x[n][c].value, mean.data()[n], rstd.data()[n], weight[c], bias[c]);
    }
    check("mean", mean, want_mean);
    check("rstd", rstd, want_rstd);
    check("out", out, want_out.data);
  });
}

template <typename T>
void TestLayerNormBackward(Driver& driver, int64_t N, int64_t C, bool with_dsum) {
  Random random;
  auto inp = random.Numbers<T>(N * C, /*size=*/1, /*center=*/10);
  auto dout = random.Numbers<T>(N * C), dsum = random.Numbers<T>(N * C);
  auto weight = random.Numbers<float>(C);
  Array<float> mean(N), rstd(N);
  Matrix x = MatrixOf(inp, N, C);
  for (int64_t n = 0; n < N; ++n) {
    Statistics statistics = RowStatistics(x[n], C, /*eps=*/1e-5);
    Assign(statistics.mean.value, &mean[n]);
    Assign(statistics.rstd.value, &rstd[n]);
  }
  auto want = LayerNormBackward(MatrixOf(dout, N, C), x, MatrixOf(mean, 1, N), MatrixOf(rstd, 1, N),
                                MatrixOf(weight, 1, C));
  for (int64_t i = 0; with_dsum && i < N * C; ++i)
    want.dinp.data[i] = Plus(want.dinp.data[i], {Value(dsum[i])});

  Shape shape{{"N", N}, {"C", C}, {"dsum", with_dsum}};
  driver.OnEach(Types<T>(), "layernorm_backward", shape, [&](auto& kernels, const Check& check) {
    Output<T> dinp(N * C);
    Output<float> dweight(C), dbias(C);
    check.Twice([&](Threads& threads, int call) {
      On<T>(kernels).layernorm_backward(threads, N, C, mean.data(), rstd.data(),
                                        with_dsum ? dsum.data() : nullptr, dout.data(), inp.data(),
                                        weight.data(), dinp.data(call), dweight.data(call),
                                        dbias.data(call));
    });
    check("dinp", dinp, want.dinp.data);
    check("dweight", dweight, want.dweight.data);
    check("dbias", dbias, want.dbias.data);
  });
}

// nan: one number of what comes in is none, and so must all that depends on it be.
template <typename T, typename W>
void TestMatmul(Driver& driver, int64_t N, int64_t C, int64_t OC, bool nan = false) {
  Random random;
  auto inp = random.Numbers<T>(N * C), dout = random.Numbers<T>(N * OC);
  if (nan) Assign(NAN, &inp[C]), Assign(NAN, &dout[2 * OC]);
  auto weight = random.Numbers<W>(OC * C);
  auto bias = random.Numbers<float>(OC);
  Matrix x = MatrixOf(inp, N, C), dy = MatrixOf(dout, N, OC), w = MatrixOf(weight, OC, C);
  Matrix b = MatrixOf(bias, 1, OC), want_dbias = RowSum(dy);
  Matrix want_out = WithWeights<T, W>(w, [&](const Matrix& w) { return Linear(x, w, b); });
  Matrix want_dinp =
      WithWeights<T, W>(w, [&](const Matrix& w) { return Product(dy, Transposed(w)); });
  Matrix want_dweight = Product(Transposed(dy), Transposed(x));

  Shape shape{{"N", N}, {"C", C}, {"OC", OC}};
  driver.OnEach(Types<T, W>(), "matmul", shape, [&](auto& kernels, const Check& check) {
    Output<T> out(N * OC), dinp(N * C), dweight(OC * C);
    Output<float> dbias(OC);
    check.Twice([&](Threads& threads, int call) {
      On<T, W>(kernels).matmul_forward(threads, N, C, OC, inp.data(), weight.data(), bias.data(),
                                       out.data(call));
      On<T, W>(kernels).matmul_backward(threads, N, C, OC, dout.data(), inp.data(), weight.data(),
                                        dinp.data(call), dweight.data(call), dbias.data(call));
    });
    check("out", out, want_out.data);
    check("dinp", dinp, want_dinp.data);
    check("dweight", dweight, want_dweight.data);
    check("dbias", dbias, want_dbias.data);
  });
}

// Floats of all 24 bits and many sizes, multiplied with an identity from either side, are the same
// floats: none of their bits is lost where they are multiplied in parts.
void TestExactProducts(Driver& driver, int64_t C) {
  auto numbers = Random().Numbers<float>(C * C);
  for (int64_t i = 0; i < C * C; ++i) numbers[i] = std::ldexp(numbers[i], i % 61 - 30);
  Array<float> identity(C * C), none(C);
  Matrix same(C, C), transposed(C, C);
  for (int64_t r = 0; r < C; ++r)
    for (int64_t c = 0; c < C; ++c) {
      identity[r * C + c] = r == c;
      same.data[r * C + c].value = numbers[r * C + c];
      transposed.data[c * C + r].value = numbers[r * C + c];
    }
  std::memset(none.data(), 0, C * sizeof(float));

  driver.OnEach("float", "exact", {{"C", C}}, [&](auto& kernels, const Check& check) {
    Output<float> left(C * C), right(C * C);
    check.Twice([&](Threads& threads, int call) {
      auto multiply = On<float, float>(kernels).matmul_forward;
      multiply(threads, C, C, C, numbers.data(), identity.data(), none.data(), left.data(call));
      multiply(threads, C, C, C, identity.data(), numbers.data(), none.data(), right.data(call));
    });
    check("left", left, same.data);
    check("right", right, transposed.data);
  });
}

template <typename T, typename W>
void TestMlpForward(Driver& driver, int64_t N, int64_t C, int64_t H, bool nan = false) {
  Random random;
  auto inp = random.Numbers<T>(N * C);
  if (nan) Assign(NAN, &inp[C]);
  auto fcw = random.Numbers<W>(H * C), fcprojw = random.Numbers<W>(C * H);
  auto fcb = random.Numbers<float>(H), fcprojb = random.Numbers<float>(C);
  fcb[0] = -1e13f, fcb[1] = -3e38f;  // whose gelu is 0
  Matrix x = MatrixOf(inp, N, C), fcb_row = MatrixOf(fcb, 1, H);
  Matrix want_fch = WithWeights<T, W>(
      MatrixOf(fcw, H, C), [&](const Matrix& w) { return Linear(x, w, fcb_row); });

  Shape shape{{"N", N}, {"C", C}, {"H", H}};
  driver.OnEach(Types<T, W>(), "mlp_forward", shape, [&](auto& kernels, const Check& check) {
    Output<T> out(N * C), fch(N * H), fch_gelu(N * H);
    check.Twice([&](Threads& threads, int call) {
      On<T, W>(kernels).mlp_forward(threads, N, C, H, inp.data(), fcw.data(), fcb.data(),
                                    fcprojw.data(), fcprojb.data(), out.data(call),
                                    fch.data(call), fch_gelu.data(call));
    });
    std::vector<Want> want_gelu;
    for (int64_t i = 0; i < N * H; ++i) want_gelu.push_back(GeluAt<T>(Value(fch.data()[i])).out);
    Matrix gelu = MatrixOf(fch_gelu, N, H), fcprojb_row = MatrixOf(fcprojb, 1, C);
    Matrix want_out = WithWeights<T, W>(
        MatrixOf(fcprojw, C, H), [&](const Matrix& w) { return Linear(gelu, w, fcprojb_row); });
    check("fch", fch, want_fch.data);
    check("fch_gelu", fch_gelu, want_gelu);
    check("out", out, want_out.data);
  });
}

template <typename T, typename W>
void TestMlpBackward(Driver& driver, int64_t N, int64_t C, int64_t H, bool nan = false) {
  Random random;
  auto inp = random.Numbers<T>(N * C), dout = random.Numbers<T>(N * C);
  auto fch = random.Numbers<T>(N * H, /*size=*/12);
  Assign(-1e13, &fch[0]), Assign(-3e38, &fch[1]);  // whose slopes are 0
  if (nan) Assign(NAN, &fch[H]);
  auto fcw = random.Numbers<W>(H * C), fcprojw = random.Numbers<W>(C * H);
  Matrix x = MatrixOf(inp, N, C), dy = MatrixOf(dout, N, C);
  Matrix want_dfch = WithWeights<T, W>(
      MatrixOf(fcprojw, C, H), [&](const Matrix& w) { return Product(dy, Transposed(w)); });
  std::vector<Want> want_gelu;
  for (int64_t i = 0; i < N * H; ++i) {
    Gelu gelu = GeluAt<T>(Value(fch[i]));
    Want& d = want_dfch.data[i];
    want_gelu.push_back(gelu.out);
    d.tolerance = std::fabs(gelu.slope.value) * (d.tolerance + kU * std::fabs(d.value)) +
                  gelu.slope.tolerance * std::fabs(d.value);
    d.value *= gelu.slope.value;
  }

  Shape shape{{"N", N}, {"C", C}, {"H", H}};
  driver.OnEach(Types<T, W>(), "mlp_backward", shape, [&](auto& kernels, const Check& check) {
    Output<T> dinp(N * C), fch_gelu(N * H), dfch(N * H), dfcw(H * C), dfcprojw(C * H);
    Output<float> dfcb(H), dfcprojb(C);
    check.Twice([&](Threads& threads, int call) {
      On<T, W>(kernels).mlp_backward(threads, N, C, H, fch.data(), dout.data(), inp.data(),
                                     fcw.data(), /*fcb=*/nullptr, fcprojw.data(), dinp.data(call),
                                     dfcw.data(call), dfcb.data(call), dfcprojw.data(call),
                                     dfcprojb.data(call), fch_gelu.data(call), dfch.data(call));
    });
    Matrix gelu = MatrixOf(fch_gelu, N, H), dh = MatrixOf(dfch, N, H);
    Matrix want_dinp = WithWeights<T, W>(
        MatrixOf(fcw, H, C), [&](const Matrix& w) { return Product(dh, Transposed(w)); });
    check("fch_gelu", fch_gelu, want_gelu);
    check("dfch", dfch, want_dfch.data);
    check("dinp", dinp, want_dinp.data);
    check("dfcw", dfcw, Product(Transposed(dh), Transposed(x)).data);
    check("dfcb", dfcb, RowSum(dh).data);
    check("dfcprojw", dfcprojw, Product(Transposed(dy), Transposed(gelu)).data);
    check("dfcprojb", dfcprojb, RowSum(dy).data);
  });
}

// That fch which is not kept changes nothing: the first call of each kernel has it.
template <typename T, typename W>
void TestMlpWithoutFch(Driver& driver, int64_t N, int64_t C, int64_t H) {
  Random random;
  auto inp = random.Numbers<T>(N * C), dout = random.Numbers<T>(N * C);
  auto fcw = random.Numbers<W>(H * C), fcprojw = random.Numbers<W>(C * H);
  auto fcb = random.Numbers<float>(H), fcprojb = random.Numbers<float>(C);
  Shape shape{{"N", N}, {"C", C}, {"H", H}};
  driver.OnEach(Types<T, W>(), "mlp without fch", shape, [&](auto& kernels, const Check& check) {
    Output<T> out(N * C), fch_gelu(N * H), again(N * H), dfch(N * H), dinp(N * C), dfcw(H * C);
    Output<T> dfcprojw(C * H);
    Output<float> dfcb(H), dfcprojb(C);
    Array<T> fch(N * H);
    check.Twice([&](Threads& threads, int call) {
      T* kept = call == 0 ? fch.data() : nullptr;
      On<T, W>(kernels).mlp_forward(threads, N, C, H, inp.data(), fcw.data(), fcb.data(),
                                    fcprojw.data(), fcprojb.data(), out.data(call), kept,
                                    fch_gelu.data(call));
      On<T, W>(kernels).mlp_backward(threads, N, C, H, kept, dout.data(), inp.data(), fcw.data(),
                                     fcb.data(), fcprojw.data(), dinp.data(call), dfcw.data(call),
                                     dfcb.data(call), dfcprojw.data(call), dfcprojb.data(call),
                                     again.data(call), dfch.data(call));
    });
    auto same = [&](const char* name, const auto& output) {
      std::vector<Want> want;
      for (int64_t i = 0; i < output.size(); ++i) want.push_back({Value(output.data()[i]), 0});
      check(name, output, want);
    };
    same("out", out), same("fch_gelu", fch_gelu), same("fch_gelu again", again);
    same("dfch", dfch), same("dinp", dinp), same("dfcw", dfcw), same("dfcb", dfcb);
    same("dfcprojw", dfcprojw), same("dfcprojb", dfcprojb);
  });
}

template <typename T>
void TestActivations(Driver& driver) {
  for (int64_t C : {48, 7, 12}) {
    for (int64_t steps : {1, 63, 65}) TestEncoderBackward<T>(driver, /*B=*/3, steps, C);
    for (int64_t N : {1, 63, 65, 1000})
      for (bool residual : {false, true}) {
        TestLayerNormForward<T>(driver, N, C, residual);
        TestLayerNormBackward<T>(driver, N, C, residual);
      }
  }
  TestEncoderBackward<T>(driver, /*B=*/2, /*steps=*/5, /*C=*/300);  // several tasks of columns
  TestLayerNormForward<T>(driver, /*N=*/33, /*C=*/769, /*with_branch=*/true);
  TestLayerNormBackward<T>(driver, /*N=*/33, /*C=*/769, /*with_dsum=*/true);
}

template <typename T, typename W>
void TestWeights(Driver& driver) {
  for (int64_t C : {48, 7, 12}) {
    for (int64_t steps : {1, 63, 65}) TestEncoderForward<T, W>(driver, /*B=*/3, steps, C);
    for (int64_t N : {1, 5, 16})  // few_rows.h
      TestMlpForward<T, W>(driver, N, C, /*H=*/4 * C);
    for (int64_t N : {1, 63, 65, 195}) {
      TestMatmul<T, W>(driver, N, C, /*OC=*/3 * C);
      TestMlpForward<T, W>(driver, N, C, /*H=*/4 * C);
      TestMlpBackward<T, W>(driver, N, C, /*H=*/4 * C);
    }
  }
  TestMatmul<T, W>(driver, /*N=*/65, /*C=*/48, /*OC=*/144, /*nan=*/true);
  TestMlpForward<T, W>(driver, /*N=*/65, /*C=*/48, /*H=*/192, /*nan=*/true);
  TestMlpBackward<T, W>(driver, /*N=*/65, /*C=*/48, /*H=*/192, /*nan=*/true);
  TestMlpWithoutFch<T, W>(driver, /*N=*/65, /*C=*/48, /*H=*/192);
  TestMlpWithoutFch<T, W>(driver, /*N=*/7, /*C=*/12, /*H=*/51);
  for (int64_t H : {140, 180})  // made with dfch_gelu
    TestMlpWithoutFch<T, W>(driver, /*N=*/401, /*C=*/100, H);
  // gemm.h's blocks are 256 x 768 of C and 128 along the inner dimension, with AMX 1,024, or of
  // floats a third of that
  TestMatmul<T, W>(driver, /*N=*/300, /*C=*/780, /*OC=*/790);
  TestMatmul<T, W>(driver, /*N=*/1600, /*C=*/7, /*OC=*/33);
  TestMatmul<T, W>(driver, /*N=*/33, /*C=*/513, /*OC=*/17);
  TestMatmul<T, W>(driver, /*N=*/8, /*C=*/780, /*OC=*/790);
  // streamed rows are packed anew for each block of kept ones
  if (std::is_same_v<T, float>)
    TestMatmul<T, W>(driver, /*N=*/780, /*C=*/780, /*OC=*/790);
  else if (std::is_same_v<W, float>)
    TestMatmul<T, W>(driver, /*N=*/770, /*C=*/1100, /*OC=*/790);
  TestMatmul<T, W>(driver, /*N=*/96, /*C=*/256, /*OC=*/192);  // nothing remains of any tile
}

}  // namespace

// of the other files
void TestAttention(Driver& driver);
void TestClassifier(Driver& driver);
void TestOptimizer(Driver& driver);

}  // namespace llmc

int main() {
  using llmc::BF16;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  llmc::Driver driver;
  llmc::TestActivations<float>(driver);
  llmc::TestActivations<BF16>(driver);
  llmc::TestWeights<float, float>(driver);
  for (int64_t C : {48, 65, 700}) llmc::TestExactProducts(driver, C);
  llmc::TestWeights<BF16, BF16>(driver);
  llmc::TestWeights<BF16, float>(driver);
  llmc::TestAttention(driver);
  llmc::TestClassifier(driver);
  llmc::TestOptimizer(driver);
  return driver.Report() ? 0 : 1;
}
