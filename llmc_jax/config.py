"""What can be configured: model sizes, the options of a training run, and bad-input errors.

Every option of a run is one field of TrainConfig; program.py makes the absl flags from it.
Below everything else: no JAX import here.
"""

import dataclasses
import errno
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path


class RunStopped(RuntimeError):
    """A run cannot go on, through no fault of its flags.

    The message is one sentence that says what happened, what is saved and what to do;
    program.run prints it without a traceback and exits with status 1.
    """


class BadInput(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence that names the flag or the file and says what to do;
    program.run prints it without a traceback and exits with status 2.
    """


def wants_memory(error: Exception) -> bool:
    """Whether it says that memory is not enough, in the way of NumPy or of XLA."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def refused_path(error: Exception) -> str:
    """What the system says of a file that this user may not look for or change, or whose name is
    too long, as a sentence; '' for any other error."""
    why = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
    if not (isinstance(error, OSError) and error.errno in why and error.filename):
        return ""
    return f"{error.filename} cannot be used: {error.strerror}; mend that, or name another."


def not_saved(flag: str, step: int, where: str | Path, steps: list[int]) -> BadInput:
    """The error that --`flag`=`step` is none of the `steps` that are saved there."""
    return BadInput(
        f"--{flag}={step} was not saved; {where} has {', '.join(map(str, steps)) or 'none'}."
    )


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a GPT-2 model. Letters as in llm.c."""

    L: int  # layers
    NH: int  # attention heads
    C: int  # channels
    maxT: int = 1024  # longest sequence
    V: int = 50257  # vocabulary
    Vp: int = 50304  # vocabulary padded to a multiple of 128: rows of wte

    @property
    def HS(self) -> int:
        """Channels of a head."""
        return self.C // self.NH

    @property
    def num_parameters(self) -> int:
        """Number of parameters, the padded rows of wte included."""
        return (self.Vp + self.maxT + 2) * self.C + self.L * (12 * self.C**2 + 13 * self.C)


def refuse_impossible(model: ModelConfig, where: str | Path) -> None:
    """Raises BadInput where no model has such sizes; the file `where` says them."""
    if min(dataclasses.astuple(model)) < 1 or model.Vp < model.V or model.C % model.NH:
        raise BadInput(
            f"{where} has impossible sizes: {model}; all must be above 0, C a multiple of NH "
            f"and Vp at least V: copy it again, or name another model."
        )


def _gpt2(L: int, C: int, NH: int) -> ModelConfig:
    return ModelConfig(L=L, NH=NH, C=C)


def _gpt3(C: int, L: int, head_size: int) -> ModelConfig:
    return ModelConfig(L=L, NH=C // head_size, C=C, maxT=2048)


# Values of --cpu_isa.
CPU_ISAS = ("auto", "amx", "avx512", "avx2", "portable")
# Levels of --recompute.
RECOMPUTE = (0, 1, 2, 3, 4)

# Descriptors of llm.c (train_gpt2.cu, gpt2_set_hyperparameters and gpt3_set_hyperparameters).
# Its gpt3:c5140 is left out: 5140 channels do not divide into heads of 128.
MODELS = {
    "d6": _gpt2(6, 384, 6),
    "d12": _gpt2(12, 768, 12),
    "d24": _gpt2(24, 1024, 16),
    "d36": _gpt2(36, 1280, 20),
    "d48": _gpt2(48, 1600, 25),
    "d60": _gpt2(60, 1920, 30),
    "d72": _gpt2(72, 2880, 30),
    "d84": _gpt2(84, 3456, 36),
    "gpt3:c384": _gpt3(384, 6, 64),
    "gpt3:c768": _gpt3(768, 12, 64),
    "gpt3:c1024": _gpt3(1024, 24, 64),
    "gpt3:c1536": _gpt3(1536, 24, 96),
    "gpt3:c2048": _gpt3(2048, 24, 128),
    "gpt3:c2560": _gpt3(2560, 32, 80),
    "gpt3:c4096": _gpt3(4096, 32, 128),
    "gpt3:c12288": _gpt3(12288, 96, 128),
}


def model_config(descriptor: str, flag: str = "model") -> ModelConfig:
    """Sizes of the model that `descriptor` names: dN, gpt2:dN or gpt3:cC. Raises BadInput, which
    names `flag`."""
    name = canonical_model(descriptor)
    if name == "gpt3:c5140":
        raise BadInput(
            f"--{flag}=gpt3:c5140 cannot be built: 5140 channels do not divide into heads of 128; "
            "use gpt3:c4096 or gpt3:c12288."
        )
    if name not in MODELS:
        raise BadInput(f"--{flag}={descriptor} is unknown; use one of {', '.join(MODELS)}.")
    return MODELS[name]


def canonical_model(descriptor: str) -> str:
    """The one spelling of a descriptor: gpt2:d12 is d12."""
    return descriptor.removeprefix("gpt2:") if descriptor.startswith("gpt2:d") else descriptor


def is_descriptor(name: str) -> bool:
    """Whether `name` is a model of MODELS, and so never a path: ./d12 is one."""
    return canonical_model(name) in MODELS


def option(
    default, help: str, *, choices=None, minimum=None, may_change=False, of_start=False, path=False
):
    """A dataclass field that is also a command-line flag.

    choices: the values allowed. minimum: smallest number allowed.
    may_change: a resumed run may have another value than the run it continues.
    of_start: so it may, and nothing is said of it: it is how a process begins, not what the run is.
    path: it can be a path, or paths or globs with commas between (from_home).
    """
    metadata = dict(help=help, choices=choices, minimum=minimum, of_start=of_start, path=path)
    metadata["may_change"] = may_change or of_start
    return dataclasses.field(default=default, metadata=metadata)


def from_home(cfg):
    """Options with the user's home for ~ at the beginning of paths, as a shell would have it: it
    leaves it alone within a flag, and in a flagfile there is none to do it."""
    paths = {
        field.name: ",".join(map(_from_home, getattr(cfg, field.name).split(",")))
        for field in dataclasses.fields(cfg)
        if field.metadata["path"]
    }
    return dataclasses.replace(cfg, **paths)


def _from_home(path: str) -> str:
    kind = "hf:" if path.startswith("hf:") else ""
    return kind + os.path.expanduser(path.removeprefix(kind))


@dataclass(frozen=True)
class TrainConfig:
    """A training run. The letter in brackets is llm.c's flag for the same thing."""

    # what is trained, on what, to where
    model: str = option(
        "d12",
        "model: dN, gpt2:dN or gpt3:cC; or weights to start from: a model file of llm.c "
        "(PATH.bin), a folder or name of Hugging Face (hf:PATH) (-e)",
        may_change=True,  # the name; a resume compares the sizes, and has weights of its own
        path=True,
    )
    train_data: str = option(
        "",
        "token shards to train on: globs, separated by commas; each with a weight "
        "(a*.bin:0.7,b*.bin:0.3) to mix them in these shares (-i)",
        may_change=True,  # the name; a resume compares what it reads
        path=True,
    )
    val_data: str = option(
        "",
        "token shards to validate on: globs, separated by commas (-j)",
        may_change=True,
        path=True,
    )
    output_dir: str = option(
        "",
        "directory for log, checkpoints and picture; empty: write nothing (-o)",
        of_start=True,
        path=True,
    )
    # batches
    batch_size: int = option(
        4, "B: sequences in a micro-batch on each device (-b)", minimum=1, may_change=True
    )
    sequence_length: int = option(1024, "T: tokens in a sequence (-t)", minimum=1)
    total_batch_size: int = option(
        -1, "tokens in one step over all devices; -1: one micro-batch on each device (-d)"
    )
    max_steps: int = option(-1, "optimizer steps; -1: one epoch (-x)", minimum=-1, may_change=True)
    shuffle: bool = option(True, "train on the sequences in a random order")
    shuffle_order: str = option(
        "counter",
        "counter: an order that does not depend on batches and devices; llmc: exactly llm.c's "
        "(its seed is 42, and rank by rank another)",
        choices=("counter", "llmc"),
    )
    overfit_single_batch: bool = option(
        False, "train on the first batch again and again, to see the loss go to zero (-a)"
    )
    seed: int = option(42, "seed of the initialisation and of the data order", minimum=0)
    # optimizer
    lr_schedule: str = option(
        "cosine",
        "learning rate after the warm-up (-k)",
        choices=("cosine", "linear", "constant", "wsd"),
    )
    learning_rate: float = option(3e-4, "largest learning rate (-l)", minimum=0)
    schedule_steps: int = option(
        -1,
        "steps until the learning rate is at its end; -1: --max_steps at the run's first start",
        minimum=-1,
    )
    reschedule: bool = option(
        False, "with --resume: take a new --schedule_steps, or --max_steps for it", of_start=True
    )
    warmup_steps: int = option(0, "steps of linear warm-up (-u)", minimum=0)
    final_lr_fraction: float = option(
        1.0, "learning rate at the end, as a fraction of --learning_rate (-q)", minimum=0
    )
    weight_decay: float = option(0.0, "decoupled weight decay of the matrices (-c)", minimum=0)
    grad_clip: float = option(1.0, "largest global gradient norm; 0: no clipping", minimum=0)
    adam_beta1: float = option(0.9, "decay of AdamW's first moment", minimum=0)
    adam_beta2: float = option(0.95, "decay of AdamW's second moment", minimum=0)
    adam_eps: float = option(1e-8, "AdamW's epsilon", minimum=0)
    # steps with bad numbers; a step whose loss or gradient norm is not finite is always skipped
    max_bad_steps: int = option(
        10,
        "stop after so many steps in a row whose loss or gradient norm is not finite; 0: never",
        minimum=0,
        may_change=True,
    )
    skip_loss_zscore: float = option(
        0.0,
        "skip a step whose loss is more than so many standard deviations above the mean of the "
        "last 128; 0: none (-sl)",
        minimum=0,
        may_change=True,
    )
    skip_grad_zscore: float = option(
        0.0, "the same for the gradient norm (-sg)", minimum=0, may_change=True
    )
    # how it is computed
    dtype: str = option(
        "float32",
        "type of activations, matrix products and the gradients of layers' matrices; master "
        "weights, moments and accumulated gradients are always float32",
        choices=("float32", "bfloat16"),
    )
    recompute: int = option(
        1,
        "what backward computes again instead of keeping: 0 nothing, 1 GELU, 2 GELU and "
        "layernorms, 3 those and the linear layer before the GELU, 4 all of a layer but its input "
        "and attention; from 2 on, a CPU's step of few tokens also keeps the factors of weights' "
        "gradients instead of these (-r)",
        choices=RECOMPUTE,
        may_change=True,
    )
    ops: str = option(
        "auto",
        "implementation of the ops: auto, jnp or ffi for all, op=name for one; later words win "
        "(e.g. jnp,attention=ffi)",
        may_change=True,
    )
    cpu_isa: str = option(
        "auto",
        "instruction set of the C++ kernels: the best one this machine has, or one by name",
        choices=CPU_ISAS,
        may_change=True,
    )
    # on which devices, and what each of them holds
    devices: str = option(
        "",
        "cpu:N: N virtual devices on this machine's CPU, to try what needs several; empty: all "
        "that there are",
        of_start=True,
    )
    mapper: str = option(
        "shard_map",
        "how the step is mapped over the devices; pmap: by jax.pmap, in one process, without ZeRO",
        choices=("shard_map", "pmap"),
        may_change=True,
    )
    zero_stage: int = option(
        0,
        "ZeRO: what each device holds only its part of: 1 the optimizer's moments, 2 also the "
        "accumulated gradients, 3 also the parameters (-z)",
        choices=(0, 1, 2, 3),
        may_change=True,
    )
    grad_reduce_dtype: str = option(
        "float32",
        "type in which gradients are sent and added up over the devices",
        choices=("float32", "bfloat16"),
    )
    num_processes: int = option(
        -1,
        "processes that make the run together, each with the devices of its machine; -1: as SLURM, "
        "Open MPI or Kubernetes say, or one",
        minimum=-1,
        of_start=True,
    )
    process_id: int = option(
        -1, "which of them this is, from 0; -1: as they say", minimum=-1, of_start=True
    )
    coordinator_address: str = option(
        "", "HOST:PORT that process 0 is reached at; empty: as they say", of_start=True
    )
    coordinator_timeout: int = option(
        300,
        "seconds that the processes wait for each other at the start",
        minimum=1,
        of_start=True,
    )
    heartbeat_timeout: int = option(
        100,
        "seconds after which a process that is not heard of counts as dead",
        minimum=1,
        of_start=True,
    )
    compilation_cache: str = option(
        "auto",
        "where compiled programs are kept for the next start: auto (the user's cache folder), off, "
        "or a folder",
        of_start=True,
        path=True,
    )
    # how it is watched
    tensorboard: bool = option(
        False, "log for TensorBoard too, in the folder tensorboard of --output_dir", may_change=True
    )
    wandb: bool = option(
        False,
        "log to Weights & Biases too; its own variables (WANDB_PROJECT) hold",
        may_change=True,
    )
    profile_steps: str = option(
        "",
        "A:B: trace steps A to B (of the first process) with jax.profiler into the folder profile "
        "of --output_dir; empty: none",
        of_start=True,
    )
    # what happens every so many steps; 0 is never
    val_every: int = option(20, "validate every N steps (-v)", minimum=0, may_change=True)
    val_batches: int = option(
        20,
        "batches of --batch_size sequences in a validation; -1: all of --val_data (-m)",
        minimum=-1,
        may_change=True,
    )
    hellaswag: str = option(
        "",
        "after each validation but the first, how many of these questions the model gets right: "
        "PATH.bin of llm.c, or HellaSwag's PATH.jsonl; empty: none (-h)",
        may_change=True,
        path=True,
    )
    sample_every: int = option(
        20, "generate text every N steps and at the end (-s)", minimum=0, may_change=True
    )
    sample_tokens: int = option(64, "tokens to generate (-g)", minimum=1, may_change=True)
    checkpoint_every: int = option(
        0, "save a checkpoint every N steps and at the end (-n)", minimum=0, may_change=True
    )
    checkpoint_minutes: float = option(
        0.0,
        "save a checkpoint when the last is so many minutes old",
        minimum=0,
        may_change=True,
    )
    keep_checkpoints: int = option(
        0, "keep only the newest N checkpoints; 0: all (-nk)", minimum=0, may_change=True
    )
    major_checkpoint_every: int = option(
        0,
        "save a checkpoint every N steps that --keep_checkpoints never removes (-nm)",
        minimum=0,
        may_change=True,
    )
    # how it starts
    resume: bool = option(
        False,
        "continue the run in --output_dir from its newest whole checkpoint; where there is none, "
        "start a new one (-y)",
        of_start=True,
    )
    resume_step: int = option(
        -1,
        "with --resume: go back to the checkpoint of this step; later ones are set aside",
        minimum=-1,
        of_start=True,
    )
    init_from: str = option(
        "",
        "start a new run from the weights of another: its directory, or one of its checkpoints",
        of_start=True,
        path=True,
    )

    @property
    def saves_checkpoints(self) -> bool:
        """Whether checkpoints are written as the run goes, and not only when it is stopped."""
        return bool(self.checkpoint_every or self.checkpoint_minutes or self.major_checkpoint_every)

    @property
    def to_go_on(self) -> str:
        """What the command of a run that ended early needs to go on where it was, in words: with
        --resume_step it would go back to that step once more."""
        return "--resume" if self.resume_step == -1 else "--resume and without --resume_step"


def changes(before: dict, after: "TrainConfig", *, may_change: bool = False) -> list[str]:
    """Which options of a saved run (`before`, a dict) `after` disagrees with, as sentences' parts.

    may_change: of the options that may differ between a run and its continuation, or of the others.
    """
    kept = [f for f in dataclasses.fields(after) if not f.metadata["of_start"]]
    names = [f.name for f in kept if f.metadata["may_change"] == may_change]
    return [
        f"--{name} was {before[name]} and is now {getattr(after, name)}"
        for name in names
        if name in before and before[name] != getattr(after, name)
    ]


def digest(cfg: "TrainConfig", record: dict) -> str:
    """A few letters that are the same for runs that compute the same thing.

    record: what the run's checkpoints say of it; it tells model and data by what they are.
    """
    fixed = [f.name for f in dataclasses.fields(cfg) if not f.metadata["may_change"]]
    values = {name: getattr(cfg, name) for name in fixed}
    values |= {f"what is {key}": record.get(key) for key in ("model", "data")}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
