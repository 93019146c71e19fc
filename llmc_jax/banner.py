"""What a run says before its first step and after its last."""

import shlex
import sys
from pathlib import Path

import jax

from llmc_jax import ffi
from llmc_jax.config import BadInput, RunStopped, TrainConfig
from llmc_jax.run_setup import Setup
from llmc_jax.training import processes
from llmc_jax.training.checkpoint import Checkpointer
from llmc_jax.training.run_dir import RunDir
from llmc_jax.view.curves import read_run
from llmc_jax.view.panels import LOSS


def print_banner(setup: Setup) -> None:
    """Everything that is in force, before the first step."""
    cfg, model, mesh, platform = setup.cfg, setup.model, setup.mesh, jax.default_backend()
    A = cfg.total_batch_size // (cfg.batch_size * cfg.sequence_length * mesh.size)
    print(
        f"model    {cfg.model}: {model.num_parameters:,} parameters, L {model.L}, "
        f"NH {model.NH}, C {model.C}\n"
        f"device   {mesh.size} x {jax.devices()[0].device_kind} ({platform}){shared(cfg, mesh)}, "
        f"jax {jax.__version__}; {ffi.status(platform)}\n"
        f"ops      {', '.join(f'{op} {name}' for op, name in setup.op_names.items())}\n"
        f"step     {cfg.total_batch_size:,} tokens ({mesh.size} devices x {A} micro-batches x "
        f"{cfg.batch_size} x {cfg.sequence_length}), {cfg.dtype}, recompute {cfg.recompute}\n"
        f"schedule {cfg.schedule_steps} steps, {curve(cfg)} after {cfg.warmup_steps} of warm-up\n"
        f"cache    {setup.cache}"
    )
    for remark in remarks(cfg):
        print(remark)


def curve(cfg: TrainConfig) -> str:
    """The learning rate behind the warm-up, in words."""
    if cfg.lr_schedule == "constant":
        return f"constant at {cfg.learning_rate}"
    last = cfg.learning_rate * cfg.final_lr_fraction
    return f"{cfg.lr_schedule} from {cfg.learning_rate} to {last:.3g}"


def remarks(cfg: TrainConfig) -> list[str]:
    """What is allowed but seldom meant, as sentences."""
    found = []
    if cfg.warmup_steps > cfg.max_steps > 0:
        found.append(
            f"the learning rate gets to {cfg.max_steps / cfg.warmup_steps:.0%} of "
            f"--learning_rate={cfg.learning_rate}: --warmup_steps={cfg.warmup_steps} is more than "
            f"the {cfg.max_steps} steps of the run"
        )
    if not cfg.output_dir:
        found.append(
            "nothing of this run is kept: --output_dir=DIRECTORY keeps its logs, and with "
            "--checkpoint_every=N its checkpoints"
        )
    elif not cfg.saves_checkpoints:
        found.append(
            "no checkpoint is kept, unless a signal ends the run: --checkpoint_every=N or "
            "--checkpoint_minutes=M keeps them"
        )
    return found


def shared(cfg: TrainConfig, mesh) -> str:
    """How the devices make the run together, in words; '' for one."""
    if mesh.size == 1:
        return ""
    several = f" of {jax.process_count()} processes" if processes.several() else ""
    return f"{several}, {cfg.mapper}, ZeRO stage {cfg.zero_stage}"


def report_files(run: RunDir, checkpoints: Checkpointer, step: int) -> None:
    """Draw the picture; say where everything is and what can be done with it. step: the last."""
    # Here, because it imports matplotlib: half a second that the start can do without.
    from llmc_jax.view.picture import save_picture

    if not run.metrics.exists():  # no step was made, none could be logged
        return
    logged = read_run(run.root)
    try:
        save_picture([logged], run.picture, [LOSS])
    except BadInput as error:  # the flags are right: training went well with them
        raise RunStopped(f"no curves are drawn: {error} The run is as it should be.") from error
    if val := logged.curves.get("val_loss"):
        print(f"validation loss {val.values[-1]:.4f}")
    steps = checkpoints.steps()
    if steps:
        # Of a run that went on without --checkpoint_every it is from before.
        old = f" (of step {steps[-1]} of {step}: nothing after it is saved)"
        print(f"checkpoint {checkpoints.path(steps[-1])}{old if steps[-1] < step else ''}")
    print(f"log        {run.main_log} and {run.metrics}\npicture    {run.picture}")
    if steps:
        print(
            f"sample     {Path(sys.executable).name} -m llmc_jax.generate "
            f"--run={shlex.quote(str(run.root))} --prompt='def '"
        )
