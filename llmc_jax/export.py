"""Turn a model into another program's files, or into a checkpoint of ours.

python -m llmc_jax.export --source=runs/quickstart --format=llmc_bf16 --output=model.bin
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np

from llmc_jax import ops, program
from llmc_jax.config import MODELS, BadInput, ModelConfig, is_descriptor, option
from llmc_jax.files import refuse_unwritable, refuse_unwritable_folder
from llmc_jax.interop import huggingface, llmc, llmc_state
from llmc_jax.interop.source import open_model
from llmc_jax.lock import locked
from llmc_jax.models import gpt2
from llmc_jax.models.gpt2 import Params
from llmc_jax.models.initialize import initialize
from llmc_jax.trained import choose_step
from llmc_jax.training import parallel, placement
from llmc_jax.training.checkpoint import Checkpointer
from llmc_jax.training.run_dir import RunDir, find_run_dir, open_run_dir
from llmc_jax.training.step import init_state, state_shapes

LLMC_DTYPES = {"llmc": "float32", "llmc_bf16": "bfloat16"}
# Largest difference of logits that --verify takes, relative to their size: that of sums in another
# order, where the vocabulary is padded otherwise; in bf16, that of rounded weights.
TOLERANCE = {"llmc": 1e-5, "llmc_bf16": 0.02, "hf": 1e-5, "checkpoint": 1e-5}


@dataclass(frozen=True)
class ExportConfig:
    """What is read, what is written, and where."""

    source: str = option(
        "",
        "a run's directory (ours or llm.c's), a model file of llm.c (PATH.bin), a folder or "
        "name of Hugging Face (hf:PATH, hf:NAME), or a descriptor (d12) for its initial weights "
        "(./d12: a directory of that name)",
        path=True,
    )
    step: int = option(-1, "step of the run's checkpoint; -1: the newest", minimum=-1)
    format: str = option(
        "llmc",
        "llmc: model file of llm.c in fp32; llmc_bf16: in bf16; hf: folder of Hugging Face; "
        "checkpoint: run directory of ours",
        choices=("llmc", "llmc_bf16", "hf", "checkpoint"),
    )
    output: str = option("", "file or, for hf and checkpoint, directory to write", path=True)
    overwrite: bool = option(False, "replace files that exist")
    verify: bool = option(False, "read the result again and compare logits with the source's")


class Source(NamedTuple):
    """A model, and as much of its training as the source knows."""

    model: ModelConfig
    params: Params
    dtype: str  # of the activations it was made with
    step: int = 0
    moments: tuple[Params, Params] | None = None  # m and v
    data: Mapping = MappingProxyType({})  # what run.json is to say of its run's place in the data


def main(cfg: ExportConfig) -> None:
    """Read, write, verify, and say what can be done with the result."""
    for flag in ("source", "output"):
        if not getattr(cfg, flag):
            raise BadInput(f"--{flag} is needed: see --help.")
    check_output(cfg)
    source = read_source(cfg)
    write(cfg, source)
    size = sum(f.stat().st_size for f in _files(Path(cfg.output)))
    print(f"{cfg.output}: {source.model.num_parameters:,} parameters, {size:,} bytes")
    if cfg.verify:
        verify(cfg, source)


def check_output(cfg: ExportConfig) -> None:
    """Raises BadInput where --output is not what --format writes, before minutes are spent."""
    path = Path(cfg.output)
    if cfg.format in LLMC_DTYPES and path.is_dir():
        raise BadInput(f"--output={path} is a directory; --format={cfg.format} writes a file.")
    if cfg.format in LLMC_DTYPES:
        return refuse_unwritable(path, "--output=", overwrite=cfg.overwrite)
    if path.is_file():
        raise BadInput(
            f"--output={path} is a file; --format={cfg.format} writes a directory, so name another."
        )
    if cfg.format == "hf":
        huggingface.refuse_to_replace(path, overwrite=cfg.overwrite)
    else:
        find_run_dir(cfg.output, resume=False, flag="output")
    refuse_unwritable_folder(path, "--output=")


def read_source(cfg: ExportConfig) -> Source:
    """The model that --source names."""
    folder = Path(cfg.source)
    if is_descriptor(cfg.source) and folder.is_dir():
        raise BadInput(
            f"--source={cfg.source} is a descriptor and a directory here; write ./{cfg.source} for "
            f"the directory, or go elsewhere to export the descriptor's initial weights."
        )
    if folder.is_dir() and llmc_state.is_llmc_run(folder):
        run = llmc_state.read_run(folder, cfg.step)
        data = dict(devices=run.ranks, llmc=run.place._asdict() | dict(shuffle=run.shuffled))
        return Source(run.model, run.params, run.dtype, run.step, (run.m, run.v), data)
    if RunDir(folder).checkpoints.is_dir():
        return _read_checkpoint(folder, cfg.step)
    if folder.is_dir():
        raise BadInput(
            f"--source={cfg.source} holds no checkpoint, of ours or of llm.c; a folder of Hugging "
            f"Face is written hf:{cfg.source}."
        )
    if cfg.step != -1:
        raise BadInput(
            f"--step={cfg.step} is of a run's checkpoints, and --source={cfg.source} is no run; "
            f"leave it out, or name the directory of the run."
        )
    model, params = open_model(cfg.source, "source")
    if params is None:
        params = initialize(model, seed=42)
    return Source(model, params, "float32" if params.wte.dtype == np.float32 else "bfloat16")


def _read_checkpoint(folder: Path, step: int) -> Source:
    """A checkpoint of a run of ours."""
    with Checkpointer(RunDir(folder).checkpoints) as checkpoints:
        step = choose_step(folder, step, checkpoints)
        run = checkpoints.restore_run(step)
        model = ModelConfig(**run["model"])
        like = placement.replicated_like(state_shapes(model), parallel.make_mesh())
        state = jax.device_get(checkpoints.restore_state(step, like))
    return Source(model, state.params, run["config"]["dtype"], step, (state.m, state.v))


def write(cfg: ExportConfig, source: Source) -> None:
    """Write --output in --format."""
    if cfg.format in LLMC_DTYPES:
        llmc.write_model(
            cfg.output,
            source.model,
            source.params,
            dtype=LLMC_DTYPES[cfg.format],
            overwrite=cfg.overwrite,
        )
    elif cfg.format == "hf":
        huggingface.write_model(cfg.output, source.model, source.params, overwrite=cfg.overwrite)
    else:
        _write_checkpoint(cfg, source)


def _write_checkpoint(cfg: ExportConfig, source: Source) -> None:
    """A run directory with one checkpoint: to generate from, or to train on with --resume."""
    run = open_run_dir(cfg.output, resume=False, flag="output")
    params, *moments = (
        jax.tree.map(lambda x: np.asarray(x, np.float32), tree)
        for tree in (source.params, *(source.moments or ()))
    )
    state = init_state(params)
    if moments:
        state = state._replace(m=moments[0], v=moments[1], step=np.int32(source.step))
    # Without a name where the sizes have none: any file of the same sizes goes on with it.
    name = next((name for name, sizes in MODELS.items() if sizes == source.model), None)
    record = dict(
        config=dict(dtype=source.dtype) | (dict(model=name) if name else {}),
        model=dataclasses.asdict(source.model),
        loop_done=False,  # its first validation shows whether it is the model that was meant
    )
    with locked(run.root, "output"), Checkpointer(run.checkpoints) as checkpoints:
        state = placement.replicate(state, parallel.make_mesh())
        checkpoints.save(state, record | source.data, source.step)
        checkpoints.wait()
        if failure := checkpoints.take_failure():
            raise BadInput(f"--output={cfg.output} cannot be written: {failure.reason}.")


def verify(cfg: ExportConfig, source: Source) -> None:
    """Compare the logits of what was written with the source's. Raises BadInput if they differ."""
    written = {"hf": f"hf:{cfg.output}"}.get(cfg.format, cfg.output)
    result = read_source(dataclasses.replace(cfg, source=written, step=-1))
    model = source.model
    chosen, _ = ops.select("auto", jax.default_backend(), model.HS)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, model.V, (1, min(64, model.maxT))).astype(np.int32)

    def logits(of: Source) -> np.ndarray:
        params = jax.tree.map(lambda x: np.asarray(x, np.float32), of.params)
        return np.asarray(gpt2.logits(chosen, params, tokens, cfg=model))

    wanted, got = logits(source), logits(result)
    difference = float(np.abs(got - wanted).max() / np.abs(wanted).max())
    if not difference <= TOLERANCE[cfg.format]:
        raise BadInput(
            f"{cfg.output} gives other logits than {cfg.source} (by {difference:.2g} of their "
            f"size); export it again, with --overwrite."
        )
    print(f"verified: logits differ by {difference:.2g} of their size")


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


if __name__ == "__main__":
    program.run(main, ExportConfig, goes_on=True)
