// Every kernel of every instruction set this machine has, against plain arithmetic in double:
// odd shapes, exact buffers that start as NaN, two calls with other numbers of threads, other
// orders of the tasks and other alignments, which must give the same bits.
#include "tests/harness.h"

namespace llmc {
namespace {

// reference(weight), where kernels may read weights of another type than T as they are or as T.
template <typename T, typename W, typename Reference>
Matrix WithWeights(const Matrix& weight, const Reference& reference) {
  if constexpr (std::is_same_v<T, W>)
    return reference(weight);
  else
    return Between(reference(weight), reference(RoundedTo<T>(weight)));
}

Array<int32_t> Tokens(Random& random, int64_t n, int64_t V) {
  Array<int32_t> tokens(n);
  for (int64_t i = 0; i < n; ++i) tokens[i] = random.Below(V);
  return tokens;
}

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

template <typename T, typename W>
void TestMatmul(Driver& driver, int64_t N, int64_t C, int64_t OC) {
  Random random;
  auto inp = random.Numbers<T>(N * C), dout = random.Numbers<T>(N * OC);
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

template <typename T, typename W>
void TestMlpForward(Driver& driver, int64_t N, int64_t C, int64_t H) {
  Random random;
  auto inp = random.Numbers<T>(N * C);
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
void TestMlpBackward(Driver& driver, int64_t N, int64_t C, int64_t H) {
  Random random;
  auto inp = random.Numbers<T>(N * C), dout = random.Numbers<T>(N * C);
  auto fch = random.Numbers<T>(N * H, /*size=*/12);
  Assign(-1e13, &fch[0]), Assign(-3e38, &fch[1]);  // whose slopes are 0
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
                                     fcw.data(), fcprojw.data(), dinp.data(call), dfcw.data(call),
                                     dfcb.data(call), dfcprojw.data(call), dfcprojb.data(call),
                                     fch_gelu.data(call), dfch.data(call));
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

// What attention should do with qkv and dout, head by head.
template <typename T>
struct AttentionCase {
  Matrix want_out, want_dqkv;
  std::vector<Want> want_lse;
  Array<T> out;      // what backward is given: the right results,
  Array<float> lse;  // as they are stored

  AttentionCase(int64_t B, int64_t steps, int64_t NH, int64_t HS, const Array<T>& qkv,
                const Array<T>& dout)
      : want_out(B * steps, NH * HS), want_dqkv(B * steps, 3 * NH * HS), out(B * steps * NH * HS),
        lse(B * NH * steps) {
    const int64_t C = NH * HS;
    for (int64_t head = 0; head < B * NH; ++head) {
      const int64_t row = head / NH * steps, column = head % NH * HS;
      const T* x = &qkv[row * 3 * C + column];
      Matrix q = MatrixOf(x, steps, HS, 3 * C), k = MatrixOf(x + C, steps, HS, 3 * C);
      Matrix v = MatrixOf(x + 2 * C, steps, HS, 3 * C);
      auto forward = AttentionForward<T>(q, k, v);
      for (int64_t t = 0; t < steps; ++t) {
        want_lse.push_back(forward.lse[0][t]);
        Assign(want_lse.back().value, &lse[head * steps + t]);
        for (int64_t d = 0; d < HS; ++d) {
          want_out[row + t][column + d] = forward.out[t][d];
          Assign(forward.out[t][d].value, &out[(row + t) * C + column + d]);
        }
      }
      Matrix o = MatrixOf(&out[row * C + column], steps, HS, C);
      Matrix l = MatrixOf(&lse[head * steps], 1, steps);
      Matrix d_o = MatrixOf(&dout[row * C + column], steps, HS, C);
      auto backward = AttentionBackward<T>(o, l, d_o, q, k, v);
      for (int64_t t = 0; t < steps; ++t)
        for (int64_t d = 0; d < HS; ++d) {
          Want* want = &want_dqkv[row + t][column + d];
          want[0] = backward.dq[t][d];
          want[C] = backward.dk[t][d];
          want[2 * C] = backward.dv[t][d];
        }
    }
  }
};

// Numbers as large as `size` in qkv, so that scores may be far apart.
template <typename T>
void TestAttention(Driver& driver, int64_t B, int64_t steps, int64_t NH, int64_t HS,
                   double size = 1) {
  Random random;
  const int64_t C = NH * HS, N = B * steps;
  auto qkv = random.Numbers<T>(N * 3 * C, size), dout = random.Numbers<T>(N * C);
  const AttentionCase<T> the(B, steps, NH, HS, qkv, dout);

  Shape shape{{"B", B}, {"T", steps}, {"NH", NH}, {"HS", HS}};
  driver.OnEach(Types<T>(), "attention", shape, [&](auto& kernels, const Check& check) {
    Output<T> out(N * C), dqkv(N * 3 * C);
    Output<float> lse(B * NH * steps);
    check.Twice([&](Threads& threads, int call) {
      On<T>(kernels).attention_forward(threads, B, steps, NH, HS, qkv.data(), out.data(call),
                                       lse.data(call));
      On<T>(kernels).attention_backward(threads, B, steps, NH, HS, the.out.data(), the.lse.data(),
                                        dout.data(), qkv.data(), dqkv.data(call));
    });
    check("out", out, the.want_out.data);
    check("lse", lse, the.want_lse);
    check("dqkv", dqkv, the.want_dqkv.data);
  });
}

// A token of each of B texts at other places of a cache of S, behind which there are large numbers.
template <typename T>
void TestCachedAttention(Driver& driver, int64_t B, int64_t NH, int64_t S, int64_t HS) {
  Random random;
  const int64_t C = NH * HS, size = B * NH * S * HS;
  auto qkv = random.Numbers<T>(B * 3 * C);
  auto keys = random.Numbers<T>(size), values = random.Numbers<T>(size);
  Array<int32_t> position(B);
  Matrix want(B, C), want_keys(B * NH * S, HS), want_values(B * NH * S, HS);
  for (int64_t b = 0; b < B; ++b) {
    position[b] = b == 0 ? static_cast<int32_t>(S - 1) : random.Below(S);
    for (int64_t h = 0; h < NH; ++h) {
      const int64_t count = position[b] + 1, begin = (b * NH + h) * S;
      for (int64_t i = (begin + count) * HS; i < (begin + S) * HS; ++i)
        Assign(1e9, &keys[i]), Assign(1e9, &values[i]);
      const T* own = &qkv[b * 3 * C + h * HS];
      Matrix q(count, HS), k = MatrixOf(&keys[begin * HS], count, HS, HS);
      Matrix v = MatrixOf(&values[begin * HS], count, HS, HS);
      for (int64_t d = 0; d < HS; ++d) {
        q[count - 1][d].value = Value(own[d]);
        k[count - 1][d].value = Value(own[C + d]);
        v[count - 1][d].value = Value(own[2 * C + d]);
      }
      auto forward = AttentionForward<T>(q, k, v);
      for (int64_t d = 0; d < HS; ++d) want[b][h * HS + d] = forward.out[count - 1][d];
      Matrix all_k = MatrixOf(&keys[begin * HS], S, HS, HS);
      Matrix all_v = MatrixOf(&values[begin * HS], S, HS, HS);
      for (int64_t s = 0; s < S; ++s)
        for (int64_t d = 0; d < HS; ++d) {
          want_keys[begin + s][d].value = s == count - 1 ? k[s][d].value : all_k[s][d].value;
          want_values[begin + s][d].value = s == count - 1 ? v[s][d].value : all_v[s][d].value;
        }
    }
  }

  Shape shape{{"B", B}, {"NH", NH}, {"S", S}, {"HS", HS}};
  driver.OnEach(Types<T>(), "cached_attention", shape, [&](auto& kernels, const Check& check) {
    Output<T> out(B * C), new_keys(keys), new_values(values);
    check.Twice([&](Threads& threads, int call) {
      On<T>(kernels).cached_attention(threads, B, NH, S, HS, qkv.data(), position.data(),
                                      new_keys.data(call), new_values.data(call), out.data(call));
    });
    check("out", out, want.data);
    check("keys", new_keys, want_keys.data);
    check("values", new_values, want_values.data);
  });
}

template <typename T, typename W>
void TestLogits(Driver& driver, int64_t N, int64_t C, int64_t Vp) {
  Random random;
  auto lnf = random.Numbers<T>(N * C);
  auto wte = random.Numbers<W>(Vp * C);
  Matrix x = MatrixOf(lnf, N, C);
  Matrix want = WithWeights<T, W>(MatrixOf(wte, Vp, C),
                                  [&](const Matrix& w) { return Product(x, w); });

  Shape shape{{"N", N}, {"C", C}, {"Vp", Vp}};
  driver.OnEach(Types<T, W>(), "logits", shape, [&](auto& kernels, const Check& check) {
    Output<float> logits(N * Vp);
    check.Twice([&](Threads& threads, int call) {
      On<T, W>(kernels).logits(threads, N, C, Vp, lnf.data(), wte.data(), logits.data(call));
    });
    check("logits", logits, want.data);
  });
}

// Logits that reach +-`size` times the usual; every fourth row is ignored.
template <typename T, typename W>
void TestClassifier(Driver& driver, int64_t N, int64_t C, int64_t V, int64_t Vp,
                    double size = 1) {
  Random random;
  auto lnf = random.Numbers<T>(N * C, size);
  auto wte = random.Numbers<W>(Vp * C);  // also the rows that pad it, which take no part
  auto targets = Tokens(random, N, V);
  Array<float> dlosses(N);
  for (int64_t n = 0; n < N; ++n) {
    if (n % 4 == 1) targets[n] = -1;
    Assign(random.Uniform(0.5, 1.5) / N, &dlosses[n]);
  }
  targets[0] = static_cast<int32_t>(V - 1);
  Matrix x = MatrixOf(lnf, N, C), w = MatrixOf(wte, Vp, C);
  auto want = Classifier<T>(x, w, V, targets.data(), dlosses.data());
  if (!std::is_same_v<T, W>) {
    auto rounded = Classifier<T>(x, RoundedTo<T>(w), V, targets.data(), dlosses.data());
    want = {Between(want.losses, rounded.losses), Between(want.dlnf, rounded.dlnf),
            Between(want.dwte, rounded.dwte)};
  }

  Shape shape{{"N", N}, {"C", C}, {"V", V}, {"Vp", Vp}};
  driver.OnEach(Types<T, W>(), "classifier", shape, [&](auto& kernels, const Check& check) {
    Output<float> losses(N), losses_alone(N), dwte(Vp * C);
    Output<T> dlnf(N * C);
    const int64_t at_once = N > 512 ? N / 3 : N;
    Array<T> powers(at_once * Vp);
    check.Twice([&](Threads& threads, int call) {
      On<T, W>(kernels).classifier(threads, N, C, V, Vp, lnf.data(), wte.data(), targets.data(),
                                   dlosses.data(), losses.data(call), dlnf.data(call),
                                   dwte.data(call), powers.data(), at_once);
      On<T, W>(kernels).classifier(threads, N, C, V, Vp, lnf.data(), wte.data(), targets.data(),
                                   nullptr, losses_alone.data(call), nullptr, nullptr,
                                   nullptr, at_once);
    });
    check("losses", losses, want.losses.data);
    check("losses alone", losses_alone, want.losses.data);
    check("dlnf", dlnf, want.dlnf.data);
    check("dwte", dwte, want.dwte.data);
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
  for (int64_t steps : {1, 63, 65}) {
    TestAttention<T>(driver, /*B=*/2, steps, /*NH=*/3, /*HS=*/16);
    TestAttention<T>(driver, /*B=*/1, steps, /*NH=*/1, /*HS=*/7);
    TestAttention<T>(driver, /*B=*/1, steps, /*NH=*/3, /*HS=*/4);
  }
  TestCachedAttention<T>(driver, /*B=*/1, /*NH=*/1, /*S=*/1, /*HS=*/7);
  TestCachedAttention<T>(driver, /*B=*/5, /*NH=*/3, /*S=*/40, /*HS=*/16);
  TestCachedAttention<T>(driver, /*B=*/2, /*NH=*/1, /*S=*/33, /*HS=*/4);
  TestCachedAttention<T>(driver, /*B=*/2, /*NH=*/2, /*S=*/70, /*HS=*/100);
  TestAttention<T>(driver, /*B=*/1, /*steps=*/150, /*NH=*/2, /*HS=*/64, /*size=*/4);
  TestAttention<T>(driver, /*B=*/1, /*steps=*/70, /*NH=*/1, /*HS=*/16, /*size=*/12);
  TestAttention<T>(driver, /*B=*/1, /*steps=*/1000, /*NH=*/1, /*HS=*/8);
}

template <typename T, typename W>
void TestWeights(Driver& driver) {
  for (int64_t C : {48, 7, 12}) {
    for (int64_t steps : {1, 63, 65}) TestEncoderForward<T, W>(driver, /*B=*/3, steps, C);
    for (int64_t N : {1, 5, 16}) {  // few_rows.h
      TestLogits<T, W>(driver, N, C, /*Vp=*/4 * C + 3);
      TestMlpForward<T, W>(driver, N, C, /*H=*/4 * C);
    }
    for (int64_t N : {1, 63, 65, 195}) {
      TestMatmul<T, W>(driver, N, C, /*OC=*/3 * C);
      TestMlpForward<T, W>(driver, N, C, /*H=*/4 * C);
      TestMlpBackward<T, W>(driver, N, C, /*H=*/4 * C);
    }
  }
  // gemm.h's blocks are 256 x 768 of C and 128 or 256 along the inner dimension
  TestMatmul<T, W>(driver, /*N=*/300, /*C=*/780, /*OC=*/790);
  TestMatmul<T, W>(driver, /*N=*/1600, /*C=*/7, /*OC=*/33);
  TestMatmul<T, W>(driver, /*N=*/33, /*C=*/513, /*OC=*/17);
  TestMatmul<T, W>(driver, /*N=*/8, /*C=*/780, /*OC=*/790);
  TestLogits<T, W>(driver, /*N=*/30, /*C=*/48, /*Vp=*/200);
  TestMatmul<T, W>(driver, /*N=*/96, /*C=*/256, /*OC=*/192);  // nothing remains of any tile
  TestClassifier<T, W>(driver, /*N=*/1, /*C=*/7, /*V=*/5, /*Vp=*/8);
  TestClassifier<T, W>(driver, /*N=*/63, /*C=*/12, /*V=*/101, /*Vp=*/128, /*size=*/40);
  TestClassifier<T, W>(driver, /*N=*/1100, /*C=*/12, /*V=*/101, /*Vp=*/128);
  TestClassifier<T, W>(driver, /*N=*/20, /*C=*/7, /*V=*/5000, /*Vp=*/5008);  // two pieces
  TestClassifier<T, W>(driver, /*N=*/3, /*C=*/48, /*V=*/50257, /*Vp=*/50304);
}

}  // namespace

void TestOptimizer(Driver& driver);  // optimizer_test.cc

}  // namespace llmc

int main() {
  using llmc::BF16;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  llmc::Driver driver;
  llmc::TestActivations<float>(driver);
  llmc::TestActivations<BF16>(driver);
  llmc::TestWeights<float, float>(driver);
  llmc::TestWeights<BF16, BF16>(driver);
  llmc::TestWeights<BF16, float>(driver);
  llmc::TestOptimizer(driver);
  return driver.Report() ? 0 : 1;
}
