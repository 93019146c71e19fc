"""Draw the curves of runs over each other, as a picture and as a page for the browser.

python -m llmc_jax.plot runs/quickstart                      beside its log: plot.png, plot.html
python -m llmc_jax.plot runs/a runs/b log124M/main.log --output=compared
"""

from dataclasses import dataclass
from pathlib import Path

from llmc_jax import program
from llmc_jax.config import BadInput, option
from llmc_jax.files import refuse_unwritable
from llmc_jax.view.curves import read_runs
from llmc_jax.view.levels import levels
from llmc_jax.view.page import save_page
from llmc_jax.view.panels import panels_of
from llmc_jax.view.picture import save_picture


@dataclass(frozen=True)
class PlotConfig:
    """What is drawn beside the runs, and to where."""

    output: str = option(
        "", "PATH of PATH.png and PATH.html; empty: plot in the folder of the first run", path=True
    )
    levels: str = option(
        "124M",
        "sizes of OpenAI's GPT-2 and GPT-3 to compare with: some of 124M,350M,774M,1558M; empty: "
        "none",
    )


def main(paths: list[str], cfg: PlotConfig) -> None:
    """Read the runs (directories, or logs of ours or of llm.c), draw them, say where."""
    beside = tuple(levels(cfg.levels))
    runs = read_runs(paths)
    for run in runs:
        for remark in run.remarks:
            print(remark)
    first = Path(paths[0])
    output = Path(cfg.output or (first if first.is_dir() else first.parent) / "plot")
    if output.name in ("", "..") or cfg.output.endswith("/"):  # which Path drops
        raise BadInput(
            f"--output={cfg.output} names only a directory; give PATH of PATH.png and PATH.html."
        )
    picture, page = (output.with_name(output.name + end) for end in (".png", ".html"))
    for path in (picture, page):
        refuse_unwritable(path, "--output=" if cfg.output else "", overwrite=True)
    save_picture(runs, picture, panels_of(runs), beside)
    save_page(runs, page, beside)
    for run in runs:
        steps = max(int(curve.steps[-1]) for curve in run.curves.values())
        print(f"{run.name}: {', '.join(run.curves)} to step {steps}")
    print(f"picture    {picture}\npage       {page}")


if __name__ == "__main__":
    program.run(main, PlotConfig, words="RUN")
