"""Print the flagfile that does what a command line of llm.c's train_gpt2cu does.

python -m llmc_jax.llmc_flags mpirun -np 8 ./train_gpt2cu -i 'train_*.bin' -b 64 ... > run.flags
"""

import dataclasses
import re
import shlex
import sys

from llmc_jax import program, screen
from llmc_jax.config import BadInput, TrainConfig

ONE_PROCESS = "one process drives all devices of a machine; see --num_processes for more"
# Letters of llm.c that have no flag here, and why.
NO_COUNTERPART = {
    "-lg": "the GPU's own counters are not logged; nvidia-smi dmon shows them",
    "-f": "XLA chooses how float32 is multiplied; JAX's default_matmul_precision says otherwise",
    "-w": "master weights are always float32",
    "-ge": "the kernels of --ops decide what they fuse",
    **dict.fromkeys(("-pn", "-pr", "-pg", "-pi", "-ps", "-pf"), ONE_PROCESS),
}

HELP = ("--help", "-help", "-?")  # -h is a letter of llm.c's

HELLASWAG = "dev/data/hellaswag/hellaswag_val.bin"  # what -h 1 evaluates

# What llm.c does without being told to.
LLMC_DEFAULTS = dict(
    train_data="dev/data/tinyshakespeare/tiny_shakespeare_train.bin",
    val_data="dev/data/tinyshakespeare/tiny_shakespeare_val.bin",
    model="gpt2_124M_bf16.bin",
    dtype="bfloat16",
    shuffle_order="llmc",
)


def letters() -> dict[str, dataclasses.Field]:
    """llm.c's letter -> our option, from the brackets at the end of the options' help."""
    found = {}
    for field in dataclasses.fields(TrainConfig):
        if match := re.search(r"\((-\w+)\)$", field.metadata["help"]):
            found[match[1]] = field
    return found


def convert(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """(options by name, a remark for each letter without counterpart) of a command line.

    words: as the shell gives them; what stands before train_gpt2cu is passed over. Raises BadInput
    for what llm.c does not know either, and for its train_gpt2fp32cu.
    """
    options, remarks = dict(LLMC_DEFAULTS), []
    words = _arguments(words)
    for letter, value in zip(words[::2], [*words[1::2], None], strict=False):
        if letter in NO_COUNTERPART and value is not None:
            remarks.append(f"{letter} {value}: {NO_COUNTERPART[letter]}")
        elif letter not in letters():
            raise BadInput(f"'{letter}' is no flag of llm.c's train_gpt2cu.")
        elif value is None:
            raise BadInput(f"{letter} has no value; llm.c's flags are all written -x VALUE.")
        else:
            field = letters()[letter]
            options[field.name] = _value(letter, field, value)
    return options, remarks


def _arguments(words: list[str]) -> list[str]:
    """What train_gpt2cu is given: also inside of mpirun -np 8 bash -c '...'."""
    theirs = re.compile(r"(^|/)train_gpt2(_?fp32)?cu$")
    for number, word in enumerate(words):
        if len(inner := _split(word)) > 1 and any(map(theirs.search, inner)):
            return _arguments(inner)
        if found := theirs.search(word):
            if found[2]:
                raise BadInput(
                    f"{word} is a program of its own, whose letters mean other things (-o is a log "
                    f"file) and whose AdamW is another; give train's flags, with --dtype=float32, "
                    f"--adam_beta2=0.999 and --grad_clip=0 as it has them."
                )
            return words[number + 1 :]
    return words[1:] if words[:1] == ["--"] else words


def _split(word: str) -> list[str]:
    """The words inside of `word`, as a shell would have them; itself where a quote is open."""
    try:
        return shlex.split(word)
    except ValueError:
        return [word]


def _value(letter: str, field: dataclasses.Field, value: str) -> str:
    """`value` as our flag wants it."""
    if letter == "-h":
        return HELLASWAG if value != "0" else ""
    if field.type is bool:
        return "true" if value != "0" else "false"
    if field.type in (int, float):
        try:
            field.type(value)
        except ValueError as error:
            raise BadInput(f"{letter} {value}: a number is needed.") from error
    choices = field.metadata["choices"]
    if choices and field.type(value) not in choices:
        raise BadInput(f"{letter} {value}: it must be one of {', '.join(map(str, choices))}.")
    return value


def flagfile(words: list[str]) -> str:
    """The text of the flagfile for a command line of llm.c."""
    options, remarks = convert(words)
    lines = [f"# {shlex.join(_arguments(words))}"]
    lines += [f"# {remark}" for remark in remarks]
    return "\n".join(lines + [f"--{name}={value}" for name, value in options.items()])


def main() -> int:
    """Print the flagfile; what this does where that is asked for, or no flag is given."""
    words = sys.argv[1:]
    if not words or words[0] in HELP:
        print(__doc__.strip(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    print(flagfile(words))
    return 0


if __name__ == "__main__":
    screen.protect()
    sys.exit(program.ended(main))
