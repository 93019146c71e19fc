"""TinyStories, in the order and the split of llm.c (dev/data/tinystories.py).

50 files of stories; the first is for validation. The stories of a file are shuffled with the file's
number in its split as the seed. Files follow one another in the order of their names, where llm.c
takes them as they become ready: the tokens are llm.c's, the order does not depend on the machine.
"""

import json
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from llmc_jax.config import BadInput
from llmc_jax.data.archive import unpack
from llmc_jax.data.sources import Document, Source, Stream, describe, hub, numbered

REPO = "roneneldan/TinyStories"
ARCHIVE = "TinyStories_all_data.tar.gz"
SEED = 1337


def source(archive: str, downloads: Path, *, hub_url: str, shard_tokens: int) -> Source:
    """The stories of the file `archive` or, where empty, of the Hub's. Raises BadInput."""
    if archive:
        path, described = Path(archive), describe(Path(archive))
    else:
        remote = hub.Remote(hub_url, REPO)
        ((path, described),) = hub.fetch(
            remote, ARCHIVE, downloads / "tinystories", names=[ARCHIVE]
        )
    folder = downloads / "tinystories" / described["sha256"][:12]
    if not folder.is_dir():
        unpack(path, folder, "*.json", fetched=not archive)
    files = sorted(folder.glob("*.json"))
    if len(files) < 2:
        raise BadInput(f"{path} holds {len(files)} files of stories; two are needed at least.")

    def stream(name: str, part: list[Path]) -> Stream:
        size = sum(path.stat().st_size for path in part)
        shards = partial(numbered, f"tinystories_{name}", shard_tokens)
        return Stream(partial(_documents, files=part), size, "B", shards)

    streams = [stream("train", files[1:]), stream("val", files[:1])]
    return Source("tinystories", [described], streams)


def _documents(skip: int, files: list[Path]) -> Iterator[Document]:
    number = done = 0
    for index, path in enumerate(files):
        stories = _stories(path)
        random.Random(SEED + index).shuffle(stories)
        size = path.stat().st_size
        for i, story in enumerate(stories, 1):
            if number >= skip:
                yield Document(story, done + size * i // len(stories))
            number += 1
        done += size


def _stories(path: Path) -> list[str]:
    try:
        return [entry["story"].strip() for entry in json.loads(path.read_bytes())]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadInput(f"{path} is no list of stories; remove its folder.") from error
