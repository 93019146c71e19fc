"""Documents to shards: read here, tokenised by worker processes, written here, in order.

Nothing depends on the number of workers, on what they were given together, or on where an earlier
run was stopped.
"""

import dataclasses
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from llmc_jax.config import BadInput, RunStopped
from llmc_jax.data.encode import encode, parts
from llmc_jax.data.manifest import Manifest, Shard
from llmc_jax.data.prefetch import in_order
from llmc_jax.data.sources import Document, Stream
from llmc_jax.data.tokenizer import EOT
from llmc_jax.data.tokens import read_shard, write_shard
from llmc_jax.files import sha256_of

BATCH = 1 << 18  # characters given to a worker at once: some 20 ms of work
AHEAD = 4  # batches a worker that may be under way or wait for the ones before


class Batch(NamedTuple):
    texts: list[str]
    begins: bool  # whether the first text is a document's beginning
    end: int  # Document.end of the last


def write(
    stream: Stream, number: int, folder: Path, manifest: Manifest, *, workers: int
) -> Iterator[Manifest]:
    """Write the shards of a stream that the manifest lacks; gives the manifest after each.

    number: the stream's. Raises BadInput where a shard cannot be written or is there with other
    tokens, RunStopped where a worker was killed.
    """
    kept = [shard for shard in manifest.shards if shard.stream == number]
    begun, inside = (kept[-1].next_document + 1, kept[-1].next_token) if kept else (0, 0)
    wanted = itertools.islice(stream.shards(), len(kept), None)
    chunks = _without(_tokens(stream, max(begun - 1, 0), workers), inside)
    for (name, _), tokens in _filled(chunks, wanted):
        starts = np.flatnonzero(tokens == EOT)
        begun += len(starts)
        inside = len(tokens) - int(starts[-1]) if len(starts) else inside + len(tokens)
        digest = _write_shard(folder / name, tokens)
        shard = Shard(name, len(tokens), digest, number, begun - 1, inside)
        manifest = dataclasses.replace(manifest, shards=[*manifest.shards, shard])
        manifest.write(folder)
        yield manifest


def _without(chunks: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """All tokens but the first `count`."""
    for chunk in chunks:
        yield chunk[count:]
        count = max(0, count - len(chunk))


def _filled(chunks: Iterator[np.ndarray], wanted: Iterator[tuple[str, int]]):
    """The tokens, as many together as each of `wanted` holds; fewer in the last."""
    held, count = [], 0
    for shard in wanted:
        while count < shard[1] and (chunk := next(chunks, None)) is not None:
            held.append(chunk)
            count += len(chunk)
        if not count:
            return
        tokens = np.concatenate(held)
        held = [tokens[shard[1] :]]
        count = len(held[0])
        yield shard, tokens[: shard[1]]


def _write_shard(path: Path, tokens: np.ndarray) -> str:
    """Write the shard unless it is there already; gives its SHA-256."""
    if not path.exists():
        try:
            write_shard(path, tokens)
        except BadInput as error:
            raise BadInput(
                f"{str(error).rstrip('.')}; make room and give the same command again, finished "
                f"shards are kept."
            ) from error
    elif not np.array_equal(read_shard(path), tokens):
        raise BadInput(
            f"{path} holds other tokens than would be written; remove it or name another "
            f"--output_dir."
        )
    return sha256_of(path)


def _tokens(stream: Stream, skip: int, workers: int) -> Iterator[np.ndarray]:
    """The tokens of the stream's documents from number `skip` on, in order; shows progress."""
    count = 0
    with tqdm(total=stream.size, unit=stream.unit, unit_scale=True, disable=None) as bar:
        for end, tokens in _encoded(_batches(stream.documents(skip)), workers):
            count += len(tokens)
            bar.set_postfix_str(f"{count / 1e6:,.1f}M tokens", refresh=False)
            bar.update(end - bar.n)
            yield tokens


def _batches(documents: Iterable[Document]) -> Iterator[Batch]:
    """Documents together up to about BATCH characters; longer ones in parts."""
    texts, size, end = [], 0, 0
    for text, end in documents:
        pieces = parts(text, BATCH)
        texts.append(next(pieces))
        size += len(texts[-1])
        if size >= BATCH:  # as it is where there are more pieces
            yield Batch(texts, True, end)
            texts, size = [], 0
        for piece in pieces:
            yield Batch([piece], False, end)
    if texts:
        yield Batch(texts, True, end)


def _encoded(batches: Iterator[Batch], workers: int) -> Iterator[tuple[int, np.ndarray]]:
    """The end and the tokens of each batch, in order; one worker is this process."""
    if workers == 1:
        yield from map(_encode, batches)
        return
    encode(["The vocabulary is loaded before the workers are forked."])
    # Where Python can, it forks: a worker then starts at once, with the vocabulary.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (os.getpid(),))
    try:
        yield from in_order(pool, _encode, batches, ahead=AHEAD * workers)
    except BrokenProcessPool as error:
        raise RunStopped(
            "a worker process was killed, perhaps for want of memory; finished shards are kept: "
            "give the same command again, with fewer --workers."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _encode(batch: Batch) -> tuple[int, np.ndarray]:
    tokens = encode(batch.texts)
    return batch.end, tokens if batch.begins else tokens[1:]


def _start_worker(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end with it, also where it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
