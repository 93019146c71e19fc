"""The file of results: a line of JSON for each thing that was measured, or was not and why.

Every line has the stage it belongs to. {"row", "op", "by", ...} is a row: "started" when it began,
then what it measured, "skipped" or "failed" with the reason. {"end"} is how a stage ended.
Standard library only, but for the flags.
"""

import json
import os
import time
from pathlib import Path

from absl import flags

RESULTS = flags.DEFINE_string(
    "results",
    str(Path(__file__).parent.parent / "results" / "gpu.jsonl"),
    "file of JSON lines to append to; the table is written beside it",
)
PLATFORM = flags.DEFINE_enum("platform", "gpu", ["gpu", "cpu"], "where to run")
SMALL = flags.DEFINE_bool("small", False, "tiny sizes, to try the code out")


# Of a stage's environment: time.monotonic() at which it is stopped.
END = "LLMC_STAGE_END"


def shared_flags() -> list[flags.Flag]:
    """What a stage's process is given as the program was."""
    return [flags.FLAGS[name] for name in ("results", "platform", "small")]


def file() -> Path:
    return Path(RESULTS.value).absolute()


def platform() -> str:
    """gpu or cpu, as jax calls them."""
    return PLATFORM.value


def torch_device() -> str:
    return "cuda" if PLATFORM.value == "gpu" else "cpu"


def small() -> bool:
    return SMALL.value


def size() -> int:
    """Bytes in the file so far."""
    return file().stat().st_size if file().exists() else 0


def append(record: dict) -> None:
    """Add a line and see it on its way to the disk."""
    line = json.dumps(record | dict(time=time.strftime("%Y-%m-%d %H:%M:%S"))) + "\n"
    with open(file(), "a") as out:
        out.write(line)
        out.flush()
        os.fsync(out.fileno())


def read(begin: int = 0) -> list[dict]:
    """The records from byte `begin` on; a line that a kill cut short is passed over."""
    if not file().exists():
        return []
    records = []
    with open(file(), "rb") as lines:
        lines.seek(begin)
        for line in lines:
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
    return records


def without_start(record: dict) -> dict:
    return {key: value for key, value in record.items() if key not in ("started", "time")}


def latest(records: list[dict]) -> list[dict]:
    """Of each row what was measured last; in the order in which rows were first seen."""
    rows = {}
    for record in records:
        if "row" in record:
            key = (record["stage"], record["op"], record["by"])
            if "started" in record:
                rows.setdefault(key, without_start(record) | dict(failed="it died unseen"))
            else:
                rows[key] = record
    return list(rows.values())
