"""Measure the training step here and show it beside others: python -m llmc_jax.compare.

A results file is one line of JSON a measurement. It is made on each machine, and all files are
shown in one table, picture and page: python -m llmc_jax.compare --nomeasure --results='*.jsonl'.
"""

import glob
import sys
from dataclasses import dataclass
from pathlib import Path

from llmc_jax import program
from llmc_jax.comparison import charts, page, record, table
from llmc_jax.comparison.measure import measure
from llmc_jax.config import BadInput, option
from llmc_jax.contestant import TaskConfig
from llmc_jax.files import new_file, refuse_unwritable

SHOWN = ("md", "png", "html")  # table, picture and page


@dataclass(frozen=True)
class CompareConfig(TaskConfig):
    """What is measured, and what it is shown with."""

    ops: str = option("auto", "implementation of the ops (train's --ops)")
    steps: int = option(5, "timed steps, after two of warm-up", minimum=1)
    measure: bool = option(True, "measure here and append to --results; --nomeasure only shows")
    results: str = option(
        "compare.jsonl",
        "files of JSON lines to show, globs separated by commas; what is measured is appended to "
        "the first",
        path=True,
    )
    output: str = option(
        "",
        "where to write the table (.md), picture (.png) and page (.html); empty: as --results, or "
        "'compare' where that is a pattern",
        path=True,
    )


def main(cfg: CompareConfig) -> None:
    """Measure, append, show."""
    first = Path(next(iter(patterns(cfg)), ""))
    task = cfg.task(cfg.ops)
    check(cfg, first)
    output = cfg.output or beside(first)
    refuse_outputs(output, "--output=" if cfg.output else "", first)
    if cfg.measure:
        made = measure(task, steps=cfg.steps)
        made |= dict(model_name=cfg.model, ops_asked=cfg.ops)
        record.append(first, made)
        print(
            f"{cfg.model} B={cfg.B} T={cfg.T} {cfg.dtype} --ops={cfg.ops}: "
            f"{table.median_ms(made):,.1f} ms a step, {made['tokens_per_s']:,.0f} tokens/s"
        )
    records, skipped = record.read(files(patterns(cfg)))
    for one in skipped:
        print(f"passed over: {one}", file=sys.stderr)
    if not records:
        raise BadInput(f"--results={cfg.results} holds no measurement that can be shown.")
    show(records, skipped, output)


def patterns(cfg: CompareConfig) -> list[str]:
    """The parts of --results."""
    return [pattern for pattern in cfg.results.split(",") if pattern]


def beside(first: Path) -> str:
    """What --output is where it is not given."""
    return "compare" if glob.has_magic(str(first)) else str(first.with_suffix(""))


def check(cfg: CompareConfig, first: Path) -> None:
    """Raises BadInput for what can be told before anything is measured."""
    if not first.name:
        raise BadInput(f"--results={cfg.results} names no file; give one, as compare.jsonl.")
    if cfg.output and Path(cfg.output).name in ("", ".."):
        raise BadInput(
            f"--output={cfg.output} names only a directory; give PATH of PATH.md, PATH.png and "
            f"PATH.html."
        )
    if cfg.measure and glob.has_magic(str(first)):
        raise BadInput(
            f"--results={cfg.results}: what is measured is appended to the first file, so that "
            f"must be a name and no pattern; or add --nomeasure."
        )
    if cfg.measure:
        record.refuse_others(first)
    else:
        files(patterns(cfg))


def refuse_outputs(output: str, given: str, first: Path) -> None:
    """Raises BadInput where what is shown cannot be written, or would replace the results."""
    for suffix in SHOWN:
        path = f"{output}.{suffix}"
        refuse_unwritable(path, given, overwrite=True)
        if Path(path) == first:
            raise BadInput(
                f"--results={first} is a name that --output has too; take one as compare.jsonl."
            )


def files(patterns: list[str]) -> list[Path]:
    """The files that --results names. Raises BadInput where a pattern matches none."""
    paths = []
    for pattern in patterns:
        found = sorted(glob.glob(pattern))
        if not found:
            raise BadInput(
                f"--results={pattern} matches no file; name files that compare has written."
            )
        paths += [Path(name) for name in found if Path(name) not in paths]
    return paths


def show(records: list[dict], skipped: list[str], output: str) -> None:
    """Write table, picture and page, and say where they are."""
    shown = (
        table.markdown(records, skipped).encode(),
        charts.picture(records),
        page.html(records, skipped).encode(),
    )
    for suffix, data in zip(SHOWN, shown, strict=True):
        with new_file(f"{output}.{suffix}", overwrite=True) as file:
            file.write(data)
    print(f"shown in   {', '.join(f'{output}.{suffix}' for suffix in SHOWN)}")


if __name__ == "__main__":
    program.run(main, CompareConfig)
