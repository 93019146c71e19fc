"""How fast text becomes shards: prepare against the way of llm.c's dev/data/fineweb.py.

    python benchmarks/prepare.py
    python benchmarks/prepare.py --input='docs/*.jsonl' --field=text --rounds=5

The same documents, in turn, medians of rounds: llm.c's way (a pool of processes, imap in chunks of
16, one document at a time to a NumPy array, a shard's buffer; with the processes that it takes, all
cores but two, and with all cores) and ours from the documents to the manifest. Where there is no
--input, the documents are the Python files of the standard library and of what is installed, each
once, --megabytes of them in pieces of 4,000 characters, about as long as FineWeb's.

Beside the time stand the seconds of processor time, of all processes: other work on the machine
disturbs them less.
"""

import json
import multiprocessing
import os
import resource
import statistics
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from llmc_jax import machine, program
from llmc_jax.config import option
from llmc_jax.data import pipeline
from llmc_jax.data.manifest import Manifest
from llmc_jax.data.sources import Document, Stream, find_files, numbered
from llmc_jax.data.tokenizer import EOT, tokenizer
from llmc_jax.data.tokens import read_shard, write_shard

CHARACTERS = 4000


@dataclass(frozen=True)
class Config:
    input: str = option(
        "", "JSON lines (globs, comma-separated); empty: installed Python files", path=True
    )
    field: str = option("text", "field of --input with the text")
    megabytes: int = option(60, "how much of the installed Python files", minimum=1)
    rounds: int = option(5, "rounds", minimum=1)


def documents(cfg: Config) -> list[dict]:
    """The text, as the rows of a data set."""
    if cfg.input:
        files = [path.read_text().splitlines() for path in find_files("jsonl", cfg.input)]
        return [{"text": json.loads(line)[cfg.field]} for lines in files for line in lines]
    texts, room = [], cfg.megabytes * 1_000_000
    for folder in ("stdlib", "purelib"):
        for path in sorted(Path(sysconfig.get_path(folder)).rglob("*.py")):
            text = path.read_text(errors="ignore")[:room]
            room -= len(text)
            texts += [text[i : i + CHARACTERS] for i in range(0, len(text), CHARACTERS)]
    return [{"text": text} for text in dict.fromkeys(texts)]


def tokenize(row: dict) -> np.ndarray:
    tokens = np.array([EOT, *tokenizer().encode_ordinary(row["text"])])
    assert (tokens >= 0).all() and (tokens < 2**16).all()
    return tokens.astype(np.uint16)


def llm_c(rows: list[dict], folder: Path, processes: int) -> None:
    """All documents as one shard, made as llm.c makes it."""
    tokenizer()
    shard, count = np.empty(10**8, np.uint16), 0
    with (
        multiprocessing.get_context("fork").Pool(processes) as pool,
        open(os.devnull, "w") as nowhere,
        tqdm(total=len(shard), unit="tokens", file=nowhere) as bar,
    ):
        for tokens in pool.imap(tokenize, rows, chunksize=16):
            shard[count : count + len(tokens)] = tokens
            count += len(tokens)
            bar.update(len(tokens))
    write_shard(folder / "shard.bin", shard[:count])


def ours(rows: list[dict], folder: Path, processes: int) -> None:
    """The same by prepare, its manifest included."""
    stream = Stream(
        lambda skip: (Document(row["text"], i) for i, row in enumerate(rows, 1) if i > skip),
        len(rows), "documents", lambda: numbered("shard", 10**8),
    )  # fmt: skip
    for _ in pipeline.write(stream, 0, folder, Manifest("", {}, []), workers=processes):
        pass


def timed(make, rows: list[dict], processes: int) -> tuple[float, float, np.ndarray]:
    """Seconds, seconds of processor time, and the tokens."""
    with tempfile.TemporaryDirectory() as folder:
        began, processor = time.perf_counter(), processor_seconds()
        make(rows, Path(folder), processes)
        seconds, used = time.perf_counter() - began, processor_seconds() - processor
        return seconds, used, np.array(read_shard(next(Path(folder).glob("*.bin"))))


def processor_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main(cfg: Config) -> None:
    print(machine.describe("tiktoken"))
    rows, cores = documents(cfg), os.cpu_count()
    programs = {
        f"llm.c's way, {max(1, cores - 2)} processes": (llm_c, max(1, cores - 2)),
        f"llm.c's way, {cores} processes": (llm_c, cores),
        f"prepare, {cores} processes": (ours, cores),
    }
    times = {name: [] for name in programs}
    for _ in range(cfg.rounds):
        made = []
        for name, (make, processes) in programs.items():
            seconds, used, tokens = timed(make, rows, processes)
            times[name].append((seconds, used))
            made.append(tokens)
        assert all(np.array_equal(tokens, made[0]) for tokens in made)
    count, characters = len(made[0]), sum(len(row["text"]) for row in rows)
    print(f"{len(rows):,} documents, {characters:,} characters, {count:,} tokens")
    print("| | Mtoken/s | range | processor seconds a Mtoken | prepare is faster by |")
    print("|---|---|---|---|---|")
    for name, results in times.items():
        speeds = [count / seconds / 1e6 for seconds, _ in results]
        used = statistics.median(used for _, used in results) / count * 1e6
        pairs = zip(results, list(times.values())[-1], strict=True)
        ratio = statistics.median(theirs[0] / own[0] for theirs, own in pairs)
        print(
            f"| {name} | {statistics.median(speeds):.2f} | {min(speeds):.2f}-{max(speeds):.2f} "
            f"| {used:.3f} | {ratio:.2f} |"
        )


if __name__ == "__main__":
    program.run(main, Config)
