"""EleutherAI's lm-evaluation-harness on our models, its command line with one more --model.

python -m llmc_jax.lm_eval --model_args run=runs/books --tasks hellaswag --batch_size 8
"""

import sys
from pathlib import Path

from llmc_jax import program, screen
from llmc_jax.config import BadInput, from_home
from llmc_jax.evaluation.harness import Harness
from llmc_jax.files import refuse_unwritable_folder
from llmc_jax.trained import TrainedConfig, open_by_flags

NAME = "llmc_jax"  # of --model
DTYPES = ("auto", "float32", "bfloat16")
BATCH_SIZE = 8  # for --batch_size auto


def open_harness(
    *, run: str, model: str, step: int, sequence_length: int, dtype: str, ops_spec: str, batch_size
) -> Harness:
    """The model that --model_args name, as evaluate's flags do. Raises BadInput."""
    _check(step=step, sequence_length=sequence_length, dtype=dtype, batch_size=batch_size)
    cfg = TrainedConfig(
        run=str(run), model=str(model), step=step, sequence_length=sequence_length, dtype=dtype,
        ops=str(ops_spec),
    )  # fmt: skip
    number = int(batch_size) if str(batch_size).isdecimal() else BATCH_SIZE
    return Harness(open_by_flags(from_home(cfg), shortest=2), batch_size=number)


def _check(*, step, sequence_length, dtype, batch_size) -> None:
    """Raises BadInput for what the flags of evaluate could not be: the harness takes any word."""
    for name, value in dict(step=step, sequence_length=sequence_length).items():
        if type(value) is not int or value < -1:
            raise BadInput(f"--model_args {name}={value} must be a whole number, or -1.")
    if dtype not in DTYPES:
        raise BadInput(f"--model_args dtype={dtype} must be one of {', '.join(DTYPES)}.")
    if str(batch_size) == "0":
        raise BadInput("--batch_size=0 must be at least 1, or auto.")


def register() -> type:
    """Make --model llmc_jax known to the harness. Raises BadInput where that is not installed."""
    try:
        from lm_eval.api.model import LM
        from lm_eval.api.registry import register_model
    except ImportError as error:
        raise BadInput(f"lm_eval is not installed ({error}); pip install -e .[lm_eval].") from error

    @register_model(NAME)
    class LlmcJax(LM):
        """What the harness calls; its arguments are those of --model_args and --batch_size."""

        def __init__(
            self, run="", model="", step=-1, sequence_length=-1, dtype="auto", ops="auto",
            batch_size=BATCH_SIZE, **of_other_models,
        ):  # fmt: skip
            super().__init__()
            if unknown := sorted(of_other_models.keys() - {"device", "max_batch_size"}):
                raise BadInput(f"--model_args has {', '.join(unknown)}, which {NAME} has not.")
            self._harness = open_harness(
                run=run, model=model, step=step, sequence_length=sequence_length, dtype=dtype,
                ops_spec=ops, batch_size=batch_size,
            )  # fmt: skip

        def loglikelihood(self, requests):
            return self._answer("loglikelihood", requests, [r.args for r in requests])

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            return self._answer("loglikelihood_rolling", requests, [r.args[0] for r in requests])

        def generate_until(self, requests, disable_tqdm=False):
            return self._answer("generate_until", requests, [r.args for r in requests])

        def _answer(self, kind, requests, arguments):
            answers = getattr(self._harness, kind)(arguments)
            for request, answer in zip(requests, answers, strict=True):
                self.cache_hook.add_partial(kind, request.args, answer)
            return answers

    return LlmcJax


def refuse_output(words: list[str]) -> None:
    """Raises BadInput where the harness, which tries it when all is evaluated, could not write to
    --output_path, a folder or PATH.json."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        value = Path(value if equals else following).expanduser()
        if flag in ("--output_path", "-o"):
            folder = value.parent if value.suffix == ".json" else value
            refuse_unwritable_folder(folder, f"{flag}: ")


def main() -> int:
    """lm_eval's command line; exit status 2 for what cannot be used."""
    words = sys.argv[1:]
    try:
        register()
    except BadInput as error:
        if not {"-h", "--help"} & set(words):
            raise
        print(f"{__doc__.strip()}\n\nIts flags are those of lm_eval, but {error}")
        return 0
    from lm_eval.__main__ import cli_evaluate

    refuse_output(words)
    if words[:1] not in (["ls"], ["validate"]):
        words = ["run", "--model", NAME, *words[words[:1] == ["run"] :]]
    sys.argv[1:] = words
    cli_evaluate()
    return 0


if __name__ == "__main__":
    screen.protect()
    screen.outlive()  # a long evaluation may have its numbers in --output_path
    sys.exit(program.ended(main))
