"""FineWeb and FineWeb-Edu, split as llm.c does (dev/data/fineweb.py): the first shard validates.

Also the shards that llm.c's scripts fetch ready made (dev/data/fineweb.sh and edu_fineweb.sh).
"""

import itertools
from functools import partial
from pathlib import Path

from llmc_jax.config import BadInput
from llmc_jax.data.sources import Source, Stream, describe, find_files, hub, numbered, parquet

REPOS = {"classic": "HuggingFaceFW/fineweb", "edu": "HuggingFaceFW/fineweb-edu"}
FOLDERS = {"10B": "sample/10BT", "100B": "sample/100BT", "sample": "sample/10BT"}
READY = {
    "classic": "chrisdryden/FineWebTokenizedGPT2",
    "edu": "karpathy/fineweb-edu-100B-gpt2-token-shards",
}
READY_COUNTS = {"classic": 1028, "edu": 1001}  # for training, numbered from 1
STEMS = {"classic": "fineweb", "edu": "edu_fineweb"}


def source(
    pattern: str, downloads: Path, *, kind: str, version: str, hub_url: str, shard_tokens: int
) -> Source:
    """The documents of the files `pattern` or, where empty, of the Hub's. Raises BadInput.

    kind: classic or edu. version: 10B, 100B, or sample, the first file of 10B.
    """
    if pattern:
        paths = find_files("fineweb", pattern)
        files = [(path, describe(path)) for path in paths]
    else:
        remote = hub.Remote(hub_url, REPOS[kind], FOLDERS[version])
        into = downloads / f"{STEMS[kind]}_{FOLDERS[version].replace('/', '_')}"
        names = ["000_00000.parquet"] if version == "sample" else None
        files = hub.fetch(remote, "*.parquet", into, names=names)
    paths = [path for path, _ in files]
    count = sum(parquet.rows(paths, "text"))
    stem = STEMS[kind]

    def shards():
        val = itertools.islice(numbered(f"{stem}_val", shard_tokens), 1)
        return itertools.chain(val, numbered(f"{stem}_train", shard_tokens, first=1))

    documents = partial(parquet.documents, paths=paths, field="text", begin=0, end=count)
    stream = Stream(documents, count, "documents", shards)
    return Source(stem, [described for _, described in files], [stream])


def ready_made(folder: Path, *, kind: str, max_shards: int, hub_url: str) -> list[dict]:
    """Fetch llm.c's shards into `folder`; gives file and sha256 of each. Raises BadInput.

    max_shards: so many for training, -1: all.
    """
    count = READY_COUNTS[kind] if max_shards < 0 else max_shards
    if count > READY_COUNTS[kind]:
        raise BadInput(
            f"--max_shards={count} is too many: there are {READY_COUNTS[kind]} ready-made shards."
        )
    stem = STEMS[kind]
    names = [f"{stem}_train_{number:06d}.bin" for number in range(1, count + 1)]
    names = [f"{stem}_val_000000.bin", *names]
    files = hub.fetch(hub.Remote(hub_url, READY[kind]), f"{stem}_*.bin", folder, names=names)
    if missing := set(names) - {path.name for path, _ in files}:
        raise BadInput(f"{READY[kind]} has no {min(missing)}; lower --max_shards.")
    return [described for _, described in files]
