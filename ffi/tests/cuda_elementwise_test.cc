// The kernels that are bound by memory.
#include <algorithm>
#include <numeric>

#include "tests/cuda_harness.h"

namespace llmc::cuda::test {
namespace {

// The same numbers in both types that a gradient may have.
struct GradientBuffer {
  Buffer<float> values;
  Buffer<bf16> halves;

  GradientBuffer(int64_t size, std::mt19937& random) : values(size, random), halves(size) {
    for (int64_t i = 0; i < size; ++i)
      values[i] = ToFloat(halves[i] = FromFloat<bf16>(values[i]));
  }
  // Without the first `skip` numbers, so that the others are not aligned to 16 bytes.
  Gradient As(bool half, int skip = 0) {
    if (half) return {halves.data() + skip, halves.size() - skip, true};
    return {values.data() + skip, values.size() - skip, false};
  }
};

void TestGlobalNorm() {
  std::mt19937 random(0);
  std::vector<GradientBuffer> buffers;
  for (int64_t size : {1, 3, 35, 1000, 20167, 300001, 1001, 2})
    buffers.emplace_back(size, random);
  while (buffers.size() < 70) buffers.emplace_back(9, random);
  std::vector<Gradient> grads;
  double sum = 0;
  for (auto& buffer : buffers) {
    int skip = grads.size() % 3 == 2;
    grads.push_back(buffer.As(/*half=*/grads.size() % 2, skip));
    for (int64_t i = skip; i < buffer.values.size(); ++i)
      sum += std::pow(buffer.values.Value(i), 2);
  }
  InEverySchedule("global_norm", [&] {
    Buffer<float> partials(kNormPartials), norm(1);
    Expect("global_norm", GlobalNorm(nullptr, static_cast<int>(grads.size()), grads.data(),
                                     partials.data(), norm.data()));
    Expect("global_norm", norm, {std::sqrt(sum)}, 1e-5 * std::sqrt(sum));
  });
}

template <typename T>
void TestEncoder(EncoderSizes s, int tokens, std::mt19937& random) {
  std::string name = "encoder of " + std::to_string(s.B * s.T) + " x " + std::to_string(s.C) +
                     ", " + std::to_string(sizeof(T)) + " bytes";
  int N = s.B * s.T;
  Buffer<T> dout(int64_t{N} * s.C, random);
  Buffer<float> before(int64_t{s.Vp} * s.C, random);
  std::vector<int> inp(N), order(N), sorted(N);
  for (int& token : inp) token = static_cast<int>(random() % tokens);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return inp[a] < inp[b]; });
  for (int n = 0; n < N; ++n) sorted[n] = inp[order[n]];
  std::vector<double> dwte(before.size()), dwpe(int64_t{s.max_T} * s.C);
  for (int64_t i = 0; i < before.size(); ++i) dwte[i] = before.Value(i);
  for (int64_t n = 0; n < N; ++n)
    for (int64_t c = 0; c < s.C; ++c) {
      dwte[inp[n] * int64_t{s.C} + c] += dout.Value(n * s.C + c);
      dwpe[n % s.T * s.C + c] += dout.Value(n * s.C + c);
    }
  InEverySchedule(name, [&] {
    Buffer<float> in_place(before), of_positions(dwpe.size());
    Buffer<float> partials(CeilDiv(N, kEncoderWindow) * 2 * s.C);
    Expect(name, EncoderBackward(nullptr, kType<T>, s, dout.data(), sorted.data(), order.data(),
                                 in_place.data(), of_positions.data(), partials.data()));
    Expect(name + ", dwte", in_place, dwte, 1e-4);
    Expect(name + ", dwpe", of_positions, dwpe, 1e-4);
  });
}

void TestEncoder(std::mt19937& random) {
  // one row; runs that end in their window, cross into the next, fill several; one token only
  for (auto [tokens, s] : {std::pair(1, EncoderSizes{1, 1, 7, 3, 1}),
                           {40, {2, 40, 12, 50, 45}},
                           {9, {3, 63, 16, 9, 63}},
                           {2, {2, 65, 8, 5, 70}},
                           {1, {2, 64, 264, 2, 64}}}) {
    TestEncoder<float>(s, tokens, random);
    TestEncoder<bf16>(s, tokens, random);
  }
}

template <typename T>
struct LayernormProblem {
  int N, C;
  Buffer<T> residual, branch, dsum, dout, sum;
  Buffer<float> weight, bias;
  std::vector<double> out, mean, rstd, dinp, dweight, dbias;

  LayernormProblem(int N, int C, std::mt19937& random)
      : N(N),
        C(C),
        residual(int64_t{N} * C, random),
        branch(int64_t{N} * C, random),
        dsum(int64_t{N} * C, random),
        dout(int64_t{N} * C, random),
        sum(int64_t{N} * C),
        weight(C, random),
        bias(C, random),
        out(sum.size()),
        mean(N),
        rstd(N),
        dinp(sum.size()),
        dweight(C),
        dbias(C) {
    for (int n = 0; n < N; ++n) Row(n);
  }

  void Row(int n) {
    int64_t row = int64_t{n} * C;
    double squares = 0, dnorm_mean = 0, dnorm_norm_mean = 0;
    for (int64_t i = row; i < row + C; ++i) {
      sum[i] = FromFloat<T>(ToFloat(residual[i]) + ToFloat(branch[i]));
      mean[n] += sum.Value(i) / C;
    }
    for (int64_t i = row; i < row + C; ++i) squares += std::pow(sum.Value(i) - mean[n], 2);
    rstd[n] = 1 / std::sqrt(squares / C + 1e-5);
    auto norm = [&](int c) { return (sum.Value(row + c) - mean[n]) * rstd[n]; };
    auto dnorm = [&](int c) { return dout.Value(row + c) * weight[c]; };
    for (int c = 0; c < C; ++c) {
      out[row + c] = norm(c) * weight[c] + bias[c];
      dweight[c] += dout.Value(row + c) * norm(c);
      dbias[c] += dout.Value(row + c);
      dnorm_mean += dnorm(c) / C;
      dnorm_norm_mean += dnorm(c) * norm(c) / C;
    }
    for (int c = 0; c < C; ++c)
      dinp[row + c] = rstd[n] * (dnorm(c) - dnorm_mean - norm(c) * dnorm_norm_mean);
  }
};

template <typename T>
void TestLayernorm(int N, int C, int blocks, std::mt19937& random) {
  std::string name = "layernorm of " + std::to_string(N) + " x " + std::to_string(C) + ", " +
                     std::to_string(sizeof(T)) + " bytes";
  LayernormProblem<T> p(N, C, random);
  std::vector<double> dinp_and_dsum(p.dinp);
  for (int64_t i = 0; i < p.dsum.size(); ++i) dinp_and_dsum[i] += p.dsum.Value(i);
  double tolerance = 8 * kEpsilon<T> + 1e-4;
  InEverySchedule(name, [&] {
    Buffer<T> sum(p.sum.size()), out(p.sum.size()), dinp(p.sum.size());
    Buffer<float> mean(N), rstd(N), dweight(C), dbias(C), partials(int64_t{blocks} * 2 * C);
    Expect(name, ResidualLayernormForward(nullptr, kType<T>, N, C, 1e-5f, p.residual.data(),
                                          p.branch.data(), p.weight.data(), p.bias.data(),
                                          sum.data(), out.data(), mean.data(), rstd.data()));
    if (std::memcmp(sum.data(), p.sum.data(), sum.size() * sizeof(T))) Fail(name, "the sum");
    Expect(name + ", out", out, p.out, 2 * tolerance);
    Expect(name + ", mean", mean, p.mean, 1e-5);
    for (bool residual : {false, true}) {
      Expect(name, LayernormBackward(nullptr, kType<T>, N, C, mean.data(), rstd.data(),
                                     residual ? p.dsum.data() : nullptr, p.dout.data(), sum.data(),
                                     p.weight.data(), dinp.data(), dweight.data(), dbias.data(),
                                     partials.data(), blocks));
      Expect(name + ", dinp", dinp, residual ? dinp_and_dsum : p.dinp, 2 * tolerance);
      Expect(name + ", dweight", dweight, p.dweight, 1e-3);
      Expect(name + ", dbias", dbias, p.dbias, 1e-3);
    }
  });
}

void TestLayernorm(std::mt19937& random) {
  struct {
    int N, C, blocks;
  } cases[] = {{1, 8, 1}, {5, 7, 3}, {9, 264, 4}, {3, 100, 8}, {2200, 8, 2}, {2, 4104, 1}};
  for (auto [N, C, blocks] : cases) {
    TestLayernorm<float>(N, C, blocks, random);
    TestLayernorm<bf16>(N, C, blocks, random);
  }
}

template <typename T>
void TestGelu(int N, int C, int blocks, std::mt19937& random) {
  std::string name = "gelu of " + std::to_string(N) + " x " + std::to_string(C) + ", " +
                     std::to_string(sizeof(T)) + " bytes";
  Buffer<T> dout(int64_t{N} * C, random), inp(int64_t{N} * C, random, 3);
  inp[0] = FromFloat<T>(-100.0f);
  inp[inp.size() - 1] = FromFloat<T>(100.0f);
  std::vector<double> out(inp.size()), dinp(inp.size()), dbias(C);
  for (int64_t i = 0; i < inp.size(); ++i) {
    double x = inp.Value(i), scale = std::sqrt(2 / M_PI);
    double tanh = std::tanh(scale * (x + 0.044715 * x * x * x));
    out[i] = x / 2 * (1 + tanh);
    dinp[i] = (1 + tanh) / 2 + x / 2 * (1 - tanh * tanh) * scale * (1 + 3 * 0.044715 * x * x);
    dinp[i] *= dout.Value(i);
    dbias[i % C] += dinp[i];
  }
  InEverySchedule(name, [&] {
    Buffer<T> gradient(inp.size()), again(inp.size());
    Buffer<float> bias(C), partials(int64_t{blocks} * C);
    for (bool with_out : {false, true}) {
      Expect(name, GeluBackward(nullptr, kType<T>, N, C, dout.data(), inp.data(), gradient.data(),
                                with_out ? again.data() : nullptr, bias.data(), partials.data(),
                                blocks));
      Expect(name + ", dinp", gradient, dinp, 4 * kEpsilon<T> + 1e-5);
      Expect(name + ", dbias", bias, dbias, 1e-4);
    }
    for (int64_t i = 0; i < inp.size(); ++i)
      if (!(std::fabs(again.Value(i) - out[i]) <= (kEpsilon<T> + 1e-6) * (1 + std::fabs(out[i]))))
        return Fail(name, "gelu of " + std::to_string(inp.Value(i)));
  });
}

void TestGelu(std::mt19937& random) {
  struct {
    int N, C, blocks;
  } cases[] = {{1, 1, 1}, {7, 3, 3}, {9, 136, 4}, {3, 1100, 5}, {50, 8, 2}};
  for (auto [N, C, blocks] : cases) {
    TestGelu<float>(N, C, blocks, random);
    TestGelu<bf16>(N, C, blocks, random);
  }
}

// A tensor with its gradient and moments, and what they should become.
struct AdamWTensors {
  Buffer<float> param;
  GradientBuffer grad;
  Buffer<float> m, v;
  std::vector<double> new_param, new_m, new_v;

  AdamWTensors(int64_t size, std::mt19937& random)
      : param(size, random), grad(size, random), m(size, random), v(size, random) {
    for (int64_t i = 0; i < size; ++i) v[i] = std::fabs(v[i]);
  }
  void Update(double lr, double scale, int step, double decay) {
    for (int64_t i = 0; i < param.size(); ++i) {
      double g = scale * grad.values[i];
      new_m.push_back(0.9 * m[i] + 0.1 * g);
      new_v.push_back(0.95 * v[i] + 0.05 * g * g);
      double m_hat = new_m[i] / (1 - std::pow(0.9, step));
      double v_hat = new_v[i] / (1 - std::pow(0.95, step));
      new_param.push_back(param[i] - lr * (m_hat / (std::sqrt(v_hat) + 1e-8) + decay * param[i]));
    }
  }
};

void TestAdamW(std::mt19937& random) {
  std::vector<AdamWTensors> tensors;
  for (int64_t size : {1, 3, 1024, 1025, 20167, 20168}) tensors.emplace_back(size, random);
  while (tensors.size() < 70) tensors.emplace_back(5, random);
  for (size_t l = 0; l < tensors.size(); ++l) tensors[l].Update(0.01, 0.5, 3, 0.1 * (l % 2));
  float lr = 0.01f, scale = 0.5f;
  int step = 3;
  InEverySchedule("adamw", [&] {
    std::vector<AdamWTensors> mine(tensors);
    std::vector<AdamWLeaf> leaves;
    for (size_t l = 0; l < mine.size(); ++l) {
      AdamWTensors& t = mine[l];
      leaves.push_back({t.param.data(), t.m.data(), t.v.data(), t.grad.As(/*half=*/l % 3 == 2),
                        0.1f * (l % 2)});
    }
    Expect("adamw", AdamW(nullptr, Type::kF32, static_cast<int>(leaves.size()), leaves.data(),
                          {&lr, &scale, &step, 0.9f, 0.95f, 1e-8f}));
    for (AdamWTensors& t : mine) {
      Expect("adamw, params", t.param, t.new_param, 1e-5);
      Expect("adamw, m", t.m, t.new_m, 1e-5);
      Expect("adamw, v", t.v, t.new_v, 1e-5);
    }
  });
}

// Rounded up or down, but never to a number further away.
void TestAdamWBfloat16(std::mt19937& random) {
  float lr = 0.01f, scale = 0.5f;
  int step = 3;
  for (int64_t size : {1, 9, 2049, 5000}) {
    AdamWTensors t(size, random);
    Buffer<bf16> param(size);
    for (int64_t i = 0; i < size; ++i) t.param[i] = ToFloat(param[i] = FromFloat<bf16>(t.param[i]));
    t.Update(lr, scale, step, 0.1);
    InEverySchedule("adamw in bfloat16", [&] {
      Buffer<bf16> rounded(param);
      Buffer<float> m(t.m), v(t.v);
      AdamWLeaf leaf = {rounded.data(), m.data(), v.data(), t.grad.As(/*half=*/size > 9), 0.1f};
      Expect("adamw in bfloat16",
             AdamW(nullptr, Type::kBF16, 1, &leaf, {&lr, &scale, &step, 0.9f, 0.95f, 1e-8f}));
      Expect("adamw in bfloat16, v", v, t.new_v, 1e-5);
      for (int64_t i = 0; i < size; ++i)
        if (!(std::fabs(rounded.Value(i) - t.new_param[i]) <=
              kEpsilon<bf16> * std::fabs(t.new_param[i]) + 1e-6))
          return Fail("adamw in bfloat16", "element " + std::to_string(i));
    });
  }
}

}  // namespace

void TestElementwise() {
  std::mt19937 random(0);
  TestGlobalNorm();
  TestEncoder(random);
  TestLayernorm(random);
  TestGelu(random);
  TestAdamW(random);
  TestAdamWBfloat16(random);
}

}  // namespace llmc::cuda::test
