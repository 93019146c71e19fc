"""The same passes as a PyTorch user has them: SDPA by each backend, the rest by torch.compile.

Attention gets q, k and v apart and contiguous, as suits it best; our kernels take them packed.
AdamW and the norm get float32 gradients, as PyTorch makes them for float32 parameters; ours get
bfloat16 for the matrices of layers, and the rates of both count the bytes of ours.
"""

from functools import partial

from benchmarks.gpu_stages import results, stage, timing
from benchmarks.gpu_stages.sizes import rates, sizes
from benchmarks.gpu_stages.stage import Row, need

SDPA = ("FLASH_ATTENTION", "CUDNN_ATTENTION")


def rows() -> list[Row]:
    return [
        *(
            Row(f"attention {way}", f"torch {backend.lower()}", run, 30, first=True)
            for way in ("forward", "backward")
            for backend in SDPA
            for run in [partial(attention, backend, way)]
        ),
        *(
            Row(name, "torch.compile", partial(time, name), 45)
            for name in (
                "classifier in place",
                "classifier both",
                "layernorm forward",
                "layernorm backward",
                "residual_layernorm forward",
                "residual_layernorm backward",
                "gelu backward",
                "gelu forward",
                "encoder backward",
            )
        ),
        Row("global_norm", "torch foreach", global_norm, 30),
        Row("adamw", "torch fused", adamw, 30),
    ]


def tensors(*shapes) -> list:
    """SETS times random tensors of these shapes."""
    import torch

    def make(shape):
        return torch.randn(shape, device=results.torch_device(), dtype=torch.bfloat16)

    return [[make(shape) for shape in shapes] for _ in range(timing.SETS)]


def attention(backend: str, way: str) -> dict:
    need("torch")
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    B, T, model, *_ = sizes()
    on_gpu = results.platform() == "gpu"
    chosen = getattr(SDPBackend, backend if on_gpu else "MATH")
    sets = tensors(*[(B, T, model.NH, model.C // model.NH)] * 4)
    with sdpa_kernel(chosen):

        def forward(qkv):
            q, k, v = (x.transpose(1, 2) for x in qkv[:3])
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

        if way == "forward":
            with torch.no_grad():
                return rates("attention forward", timing.of_torch(forward, sets))
        graphs = []
        for *qkv, dout in sets:
            for x in qkv:
                x.requires_grad_()
            graphs.append((forward(qkv), qkv, dout.transpose(1, 2)))

        def backward(graph):
            out, qkv, dout = graph
            return torch.autograd.grad(out, qkv, dout, retain_graph=True)

        return rates("attention backward", timing.of_torch(backward, graphs))


def time(name: str) -> dict:
    """The pass `name`, by torch.compile."""
    need("torch")
    import torch

    with torch.no_grad():
        run, sets = {
            "classifier in place": classifier_in_place,
            "classifier both": classifier_both,
            "layernorm forward": layernorm_forward,
            "layernorm backward": layernorm_backward,
            "residual_layernorm forward": residual_layernorm_forward,
            "residual_layernorm backward": residual_layernorm_backward,
            "gelu forward": gelu_forward,
            "gelu backward": gelu_backward,
            "encoder backward": encoder_backward,
        }[name]()
        run = torch.compile(run)
        return rates(name, timing.of_torch(lambda own: run(*own), sets))


def random_targets(below: int, *shape):
    import torch

    return torch.randint(0, below, shape, device=results.torch_device())


def cross_entropy(logits, targets):
    """(losses, dlogits): written as the compiler fuses it best, and the padding left alone, which
    costs it a pass if it is masked."""
    import torch

    z = logits.float()
    largest = z.amax(1, keepdim=True)
    exp = torch.exp(z - largest)
    total = exp.sum(1, keepdim=True)
    target = targets[:, None]
    losses = total.log() + largest - z.gather(1, target)
    column = torch.arange(z.shape[1], device=z.device)[None]
    dlogits = (exp / total - (column == target).float()) / z.shape[0]
    return losses, dlogits.to(logits.dtype)


def classifier_in_place():
    """After a set's first turn its logits are gradients, as with ours."""
    B, T, model, *_ = sizes()
    targets = random_targets(model.V, B * T)

    def run(logits):
        losses, dlogits = cross_entropy(logits, targets)
        logits.copy_(dlogits)
        return losses

    return run, tensors((B * T, model.Vp))


def classifier_both():
    """Logits, losses, and both gradients."""
    B, T, model, *_ = sizes()
    targets = random_targets(model.V, B * T)

    def run(lnf, wte):
        losses, dlogits = cross_entropy(lnf @ wte.T, targets)
        return losses, dlogits @ wte, dlogits.T @ lnf

    sets = tensors((B * T, model.C), (model.Vp, model.C))
    for _, wte in sets:
        wte.mul_(0.02)
    return run, sets


def layernorm_forward():
    import torch.nn.functional as F

    B, T, model, *_ = sizes()
    C = model.C
    return lambda x, w, b: F.layer_norm(x, (C,), w, b), tensors((B, T, C), (C,), (C,))


def statistics(x):
    """(mean, rstd) of the last dimension, float32."""
    x = x.float()
    return x.mean(-1, keepdim=True), (x.var(-1, unbiased=False, keepdim=True) + 1e-5).rsqrt()


def layernorm_backward():
    import torch

    B, T, model, *_ = sizes()
    C = model.C

    def run(x, dout, w, b, mean, rstd):
        backward = torch.ops.aten.native_layer_norm_backward
        return backward(dout, x, (C,), mean, rstd, w, b, [True] * 3)

    sets = tensors((B, T, C), (B, T, C), (C,), (C,))
    return run, [[*own, *statistics(own[0])] for own in sets]


def residual_layernorm_forward():
    import torch.nn.functional as F

    B, T, model, *_ = sizes()
    C = model.C

    def run(residual, branch, w, b):
        total = residual + branch
        return total, F.layer_norm(total, (C,), w, b)

    return run, tensors((B, T, C), (B, T, C), (C,), (C,))


def residual_layernorm_backward():
    B, T, model, *_ = sizes()
    C = model.C
    backward, _ = layernorm_backward()

    def run(x, dout, dsum, w, b, mean, rstd):
        dx, dw, db = backward(x, dout, w, b, mean, rstd)
        return dx + dsum, dw, db

    sets = tensors((B, T, C), (B, T, C), (B, T, C), (C,), (C,))
    return run, [[*own, *statistics(own[0])] for own in sets]


def gelu_forward():
    import torch.nn.functional as F

    B, T, model, *_ = sizes()
    return lambda x: F.gelu(x, approximate="tanh"), tensors((B, T, 4 * model.C))


def gelu_backward():
    """With the gradient of the bias before it, as ours."""
    import torch

    B, T, model, *_ = sizes()
    shape = (B, T, 4 * model.C)

    def run(x, dout):
        dx = torch.ops.aten.gelu_backward(dout, x, approximate="tanh")
        return dx, dx.sum((0, 1))

    return run, tensors(shape, shape)


def encoder_backward():
    """The gradients of both tables: of the tokens' it is a new array, which ours adds to."""
    import torch

    B, T, model, *_ = sizes()
    tokens = random_targets(model.V, B, T)

    def run(dout):
        backward = torch.ops.aten.embedding_dense_backward
        return backward(dout, tokens, model.Vp, -1, False), dout.sum(0)

    return run, tensors((B, T, model.C))


def parameters(seed: int) -> list:
    """Tensors of the model's shapes."""
    import dataclasses

    import torch

    from benchmarks.rivals.pytorch import GPT2

    torch.manual_seed(seed)
    with torch.device(results.torch_device()):
        return list(GPT2(**dataclasses.asdict(sizes().model)).parameters())


def global_norm() -> dict:
    need("torch")
    import torch

    sets = [[x.detach() for x in parameters(seed)] for seed in range(timing.SETS)]
    return rates("global_norm", timing.of_torch(torch.nn.utils.get_total_norm, sets))


def adamw() -> dict:
    need("torch")
    import torch

    from benchmarks.rivals.pytorch import make_optimizer

    params = parameters(0)
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer = make_optimizer(params, learning_rate=1e-4, weight_decay=0.1)
    return rates("adamw", timing.of_torch(lambda _: optimizer.step(), [None]))


if __name__ == "__main__":
    stage.run("kernels_torch", rows)
