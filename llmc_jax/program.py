"""The command line: flags from a configuration's fields, one sentence for bad input."""

import dataclasses
import math
import os
import re
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from absl import app, flags, logging

from llmc_jax import interrupt, screen
from llmc_jax.config import (
    BadInput,
    RunStopped,
    TrainConfig,
    from_home,
    refused_path,
    wants_memory,
)


def define_flags(config_class: type, module: str) -> None:
    """Define one absl flag for each field of `config_class` (made with config.option).

    module: name of the main module, so that --help lists the flags as the program's own.
    """
    for field in dataclasses.fields(config_class):
        meta = field.metadata
        common = dict(name=field.name, default=field.default, help=meta["help"], module_name=module)
        if meta["choices"] and field.type is str:
            flags.DEFINE_enum(enum_values=meta["choices"], **common)
        elif field.type is bool:
            flags.DEFINE_boolean(**common)
        elif field.type is int:
            bounds = dict(lower_bound=meta["minimum"])
            if meta["choices"]:
                bounds = dict(lower_bound=min(meta["choices"]), upper_bound=max(meta["choices"]))
            flags.DEFINE_integer(**bounds, **common)
        elif field.type == tuple[str, ...]:  # given several times
            flags.DEFINE_multi_string(**common)
        elif field.type is float:
            flags.DEFINE_float(lower_bound=meta["minimum"], **common)
        else:
            flags.DEFINE_string(**common)


def run(
    main: Callable,
    config_class: type,
    commands: tuple[str, ...] = (),
    *,
    words: str = "",
    goes_on: bool = False,
    starting: str = "",
) -> None:
    """Parse the command line into a `config_class`, call main(config) and exit.

    commands: where there are any, the command line must hold one of these words, and
    main(word, config) is called. words: what the words of the command line are (RUN), where there
    must be some, and main([word, ...], config) is called. goes_on: whether the work is worth doing
    where nothing can be printed any more. starting: as in `ended`. Exit status: what main returns
    (None is 0), and that of `ended`.
    """
    define_flags(config_class, sys.argv[0])
    screen.protect()

    def start(argv):
        if goes_on:
            screen.outlive()
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.FATAL)  # what orbax logs, we say in a sentence
        command = [_words(argv[1:], words)] if words else _command(argv[1:], commands)
        values = {f.name: flags.FLAGS[f.name].value for f in dataclasses.fields(config_class)}
        for name, value in values.items():
            if isinstance(value, float) and math.isnan(value):
                raise BadInput(f"--{name}={value} is no number; give one.")
        return main(*command, from_home(config_class(**values)))

    parse = partial(_parse, config_class)
    sys.exit(ended(lambda: app.run(start, flags_parser=parse), starting=starting))


def ended(main: Callable[[], int | None], *, starting: str = "") -> int | None:
    """What main() returns, with all that it printed written; or the status of how it ended.

    1 for RunStopped and where memory is not enough, 2 for BadInput and a path that the system
    refuses, 130 when interrupted, 141 where who read standard output has gone, as the shell has it
    of programs that SIGPIPE ends. starting: of a main that takes over signals (interrupt.py), what
    is said of one that comes before, and ends the process at once.
    """
    try:
        try:
            if starting:
                interrupt.end_at_once(starting)
            else:
                interrupt.as_before()
            return main()
        finally:
            sys.stdout.flush()
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunStopped as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except screen.Gone:
        return 141
    except (KeyboardInterrupt, Exception) as error:
        if interrupt.caused(error):
            print("interrupted", file=sys.stderr)
            return 130
        # of pathlib's exists() and is_dir(), too
        if refused := refused_path(error) or no_platform(error):
            print(f"error: {refused}", file=sys.stderr)
            return 2
        if not wants_memory(error):
            raise
        reason = next(iter(str(error).splitlines()), "no reason given").rstrip(".")
        print(
            f"error: memory is not enough ({reason}); take a smaller model or less at a time, or "
            f"a machine with more of it.",
            file=sys.stderr,
        )
        return 1


def no_platform(error: BaseException) -> str:
    """That JAX has no device of those that JAX_PLATFORMS names, which it says in several ways, as a
    sentence; '' for other errors."""
    asked = os.environ.get("JAX_PLATFORMS")
    frames = traceback.extract_tb(error.__traceback__)
    if not asked or not frames or Path(frames[-1].filename).name != "xla_bridge.py":
        return ""
    return (
        f"JAX_PLATFORMS={asked} names no device that JAX finds here; unset it, or install what "
        f"they need (BUILD.md)."
    )


def _parse(config_class: type, argv: list[str]) -> list[str]:
    """The words of the command line that are no flags. Raises BadInput, where absl's own way is
    two lines and exit status 1."""
    try:
        return flags.FLAGS(argv)
    except SystemExit:  # --help has been printed: what was asked for, and so no failure
        sys.exit(0)
    except (flags.Error, ValueError) as error:
        raise BadInput(_mistake(error, argv, config_class)) from error


def _mistake(error: Exception, argv: list[str], config_class: type) -> str:
    """What absl says of the flags, as one sentence that names the flagfile where it is in one."""
    if isinstance(error, flags.UnrecognizedFlagError):
        told = _no_flag(error, config_class)
    elif isinstance(error, flags.CantOpenFlagFileError):
        missing = error.__context__
        return f"--flagfile={missing.filename} cannot be read: {missing.strerror}."
    else:
        told = _plain(" ".join(str(error).split()).rstrip("."))
    for file in _flagfiles(argv):
        try:
            flags.FLAGS([argv[0], f"--flagfile={file}"])
        except (flags.Error, ValueError):
            return f"--flagfile={file}: {told}; see --help."
    return f"{told}; see --help."


def _plain(said: str) -> str:
    """What Python says of a word that is no number, in words of the command line."""
    said = re.sub(r"invalid literal for int\(\).*", "must be a whole number", said)
    return re.sub(r"could not convert string to float.*", "must be a number", said)


def _no_flag(error: flags.UnrecognizedFlagError, config_class: type) -> str:
    """That there is no such flag, and which may have been meant."""
    name = error.flagname
    for field in dataclasses.fields(config_class):
        if field.metadata["help"].endswith(f"(-{name})"):
            told = f"-{name} is llm.c's letter for --{field.name}"
            if not issubclass(config_class, TrainConfig):
                return told
            return f"{told} (python -m llmc_jax.llmc_flags makes a flagfile of llm.c's flags)"
    _, _, near = str(error).partition("Did you mean: ")
    near = " or ".join(f"--{word}" for word in near.rstrip(" ?").split(", ") if word)
    return f"there is no flag --{name}" + (f"; did you mean {near}" if near else "")


def _flagfiles(argv: list[str]) -> list[str]:
    """The flagfiles that the command line names."""
    found = []
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in ("--flagfile", "-flagfile"):
            found.append(value if equals else following)
    return found


def _where(word: str) -> str:
    """Which flagfile has `word` on a line of its own, in words; '' where none has."""
    for file in _flagfiles(sys.argv):
        if word in flags.FLAGS.read_flags_from_files([f"--flagfile={file}"]):
            return f", in --flagfile={file}"
    return ""


def _words(given: list[str], what: str) -> list[str]:
    """The words of the command line, of which there is at least one."""
    if not given:
        raise BadInput(f"one {what} or more is needed, and flags: see --help.")
    return given


def _command(words: list[str], commands: tuple[str, ...]) -> list[str]:
    """The one word of `commands` that is to be in `words`; [] where there are no commands."""
    if not commands and words:
        raise BadInput(
            f"'{words[0]}' is not a flag{_where(words[0])}; options are written --name=value."
        )
    if commands and (len(words) != 1 or words[0] not in commands):
        raise BadInput(f"one of the words {', '.join(commands)} is needed, and flags: see --help.")
    return words
