// Attention, as kernels_test.cc tests the other kernels, and that of one token on a cache.
#include "tests/harness.h"

namespace llmc {

void TestAttention(Driver& driver);

namespace {

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

  // The first key of the first head is NaN: so is all of that head, for every token attends to it.
  void LoseKey(int64_t steps, int64_t HS) {
    const int64_t C = want_out.columns;
    for (int64_t t = 0; t < steps; ++t) {
      want_lse[t].value = lse[t] = NAN;
      for (int64_t d = 0; d < HS; ++d) {
        Assign(NAN, &out[t * C + d]);
        want_out[t][d].value = NAN;
        for (int64_t part = 0; part < 3; ++part) want_dqkv[t][part * C + d].value = NAN;
      }
    }
  }
};

// Numbers as large as `size` in qkv, so that scores may be far apart; nan: see LoseKey.
template <typename T>
void TestAttention(Driver& driver, int64_t B, int64_t steps, int64_t NH, int64_t HS,
                   double size = 1, bool nan = false) {
  Random random;
  const int64_t C = NH * HS, N = B * steps;
  auto qkv = random.Numbers<T>(N * 3 * C, size), dout = random.Numbers<T>(N * C);
  AttentionCase<T> the(B, steps, NH, HS, qkv, dout);
  if (nan) {
    Assign(NAN, &qkv[C]);
    the.LoseKey(steps, HS);
  }

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

template <typename T>
void TestAll(Driver& driver) {
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
  TestAttention<T>(driver, /*B=*/1, /*steps=*/70, /*NH=*/2, /*HS=*/16, /*size=*/1, /*nan=*/true);
  TestAttention<T>(driver, /*B=*/1, /*steps=*/1000, /*NH=*/1, /*HS=*/8);
}

}  // namespace

void TestAttention(Driver& driver) {
  TestAll<float>(driver);
  TestAll<BF16>(driver);
}

}  // namespace llmc
