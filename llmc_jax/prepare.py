"""Make token shards from text: python -m llmc_jax.prepare --source=pystdlib."""

import dataclasses
import glob
import os
from dataclasses import dataclass
from pathlib import Path

from llmc_jax import program
from llmc_jax.config import BadInput, option
from llmc_jax.data import manifest as manifests
from llmc_jax.data import pipeline, tokens
from llmc_jax.data.manifest import Manifest, Shard
from llmc_jax.data.sources import (
    Source,
    fineweb,
    jsonl,
    parquet,
    pystdlib,
    text,
    tinyshakespeare,
    tinystories,
)
from llmc_jax.files import refuse_unwritable_folder
from llmc_jax.lock import locked

MAX_TOKENS = 2**31 - 1  # a shard's header counts in int32


@dataclass(frozen=True)
class PrepareConfig:
    """What to tokenise, and where to put it."""

    source: str = option(
        "pystdlib",
        "pystdlib: this Python's standard library and documentation; tinyshakespeare, tinystories, "
        "fineweb: llm.c's; fineweb_shards: FineWeb as llm.c's ready-made shards; text: the UTF-8 "
        "files of --input; jsonl, parquet: the --field of each of their lines or rows",
        choices=(
            "pystdlib", "tinyshakespeare", "tinystories", "fineweb", "fineweb_shards", "text",
            "jsonl", "parquet",
        ),
    )  # fmt: skip
    input: str = option(
        "", "files (globs, comma-separated), or a local copy of what would be downloaded", path=True
    )
    field: str = option("text", "field of JSON lines, or column of parquet files, with the text")
    fineweb_type: str = option(
        "classic", "classic: FineWeb; edu: FineWeb-Edu (-t)", choices=("classic", "edu")
    )
    fineweb_version: str = option(
        "10B",
        "tokens of --source=fineweb; sample: the first file of 10B (-v)",
        choices=("10B", "100B", "sample"),
    )
    max_shards: int = option(
        -1, "how many shards of --source=fineweb_shards to train on; -1: all", minimum=-1
    )
    output_dir: str = option(
        "",
        "directory for the shards; empty: data/SOURCE, of FineWeb llm.c's name for it, such as "
        "data/edu_fineweb10B",
        path=True,
    )
    download_dir: str = option("data/downloads", "directory for what is downloaded", path=True)
    hub: str = option("https://huggingface.co", "where Hugging Face's files are: it, or a mirror")
    val_fraction: float = option(
        0.05,
        "share for validation, at the end: of the bytes of text and jsonl, the rows of parquet",
        minimum=0,
    )
    shard_tokens: int = option(100_000_000, "most tokens in a shard (-s)", minimum=1000)
    workers: int = option(0, "processes that tokenise; 0: one a core", minimum=0)
    verify: bool = option(False, "only compare the shards in --output_dir with their manifest")


# The flags that decide what each source's shards hold.
DECIDING = {
    "pystdlib": ["shard_tokens"],
    "tinyshakespeare": ["shard_tokens"],
    "tinystories": ["shard_tokens"],
    "fineweb": ["fineweb_type", "fineweb_version", "shard_tokens"],
    "fineweb_shards": ["fineweb_type"],
    "text": ["val_fraction", "shard_tokens"],
    "jsonl": ["field", "val_fraction", "shard_tokens"],
    "parquet": ["field", "val_fraction", "shard_tokens"],
}

# What else each source reads.
READING = {
    "pystdlib": ["workers"],
    "tinyshakespeare": ["input", "download_dir", "workers"],
    "tinystories": ["input", "download_dir", "hub", "workers"],
    "fineweb": ["input", "download_dir", "hub", "workers"],
    "fineweb_shards": ["max_shards", "hub"],
    "text": ["input", "workers"],
    "jsonl": ["input", "workers"],
    "parquet": ["input", "workers"],
}


def main(cfg: PrepareConfig) -> None:
    """Write STEM_train_000000.bin, STEM_val_000000.bin, ... and their manifest.json.

    What an earlier run of the same command has finished is compared with the manifest and kept.
    """
    folder = Path(cfg.output_dir or f"data/{_folder(cfg)}")
    if cfg.verify:
        manifest = manifests.verify(folder)
        count = sum(shard.tokens for shard in manifest.shards)
        print(f"{folder}: {len(manifest.shards)} shards, {count:,} tokens, as in the manifest")
        return
    refuse_unused(cfg)
    if cfg.shard_tokens > MAX_TOKENS:
        raise BadInput(f"--shard_tokens={cfg.shard_tokens} is too many: at most {MAX_TOKENS}.")
    refuse_unwritable_folder(folder, "--output_dir=")  # a source may be downloaded first
    source = None if cfg.source == "fineweb_shards" else _source(cfg)
    stem = source.stem if source else fineweb.STEMS[cfg.fineweb_type]
    _make_folder(folder)
    with locked(folder) as remark:
        if remark:
            print(remark)
        manifest = _make(cfg, folder, stem, source)
    print(how_to_train(f"{folder}/{stem}", [shard.file for shard in manifest.shards]))


def refuse_unused(cfg: PrepareConfig) -> None:
    """Raises BadInput where a flag is set that is of other sources only."""
    uses = {name: {*DECIDING[name], *READING[name]} for name in DECIDING}
    for flag in sorted(set().union(*uses.values()) - uses[cfg.source]):
        if getattr(cfg, flag) != getattr(PrepareConfig, flag):
            others = [name for name in uses if flag in uses[name]]
            raise BadInput(
                f"--source={cfg.source} does not use --{flag}; leave it out, or take a source "
                f"that does: {', '.join(others)}."
            )


def how_to_train(stem: str, files: list[str]) -> str:
    """The flags of training for these shards, which need not be of both kinds."""
    stem = glob.escape(stem)  # a folder may be called br[v2]
    has = {kind: any(f"_{kind}_" in file for file in files) for kind in ("train", "val")}
    if not has["train"]:
        return "there is no training shard among them"
    flags = f"train on them with --train_data='{stem}_train_*.bin'"
    if has["val"]:
        return f"{flags} --val_data='{stem}_val_*.bin'"
    return (
        f"{flags} --val_every=0: there is no validation shard; for one give more text, or a larger "
        f"--val_fraction"
    )


def _folder(cfg: PrepareConfig) -> str:
    """The name of the source's folder; of FineWeb's, llm.c's name."""
    if cfg.source == "fineweb_shards":
        return f"{fineweb.STEMS[cfg.fineweb_type]}100B"
    if cfg.source == "fineweb":
        return f"{fineweb.STEMS[cfg.fineweb_type]}{cfg.fineweb_version}"
    return cfg.source


def _source(cfg: PrepareConfig) -> Source:
    """The documents of the chosen source, on this machine. Raises BadInput."""
    size = dict(shard_tokens=cfg.shard_tokens)
    downloads = Path(cfg.download_dir)
    if cfg.source == "pystdlib":
        return pystdlib.source(**size)
    if cfg.source == "tinyshakespeare":
        return tinyshakespeare.source(cfg.input, downloads, **size)
    if cfg.source == "tinystories":
        return tinystories.source(cfg.input, downloads, hub_url=cfg.hub, **size)
    if cfg.source == "fineweb":
        return fineweb.source(
            cfg.input, downloads, kind=cfg.fineweb_type, version=cfg.fineweb_version,
            hub_url=cfg.hub, **size,
        )  # fmt: skip
    if cfg.source == "text":
        return text.source(cfg.input, val_fraction=cfg.val_fraction, **size)
    module = {"jsonl": jsonl, "parquet": parquet}[cfg.source]
    return module.source(cfg.input, field=cfg.field, val_fraction=cfg.val_fraction, **size)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"--output_dir={folder} cannot be made: {error.strerror}; name another directory."
        ) from error


def _make(cfg: PrepareConfig, folder: Path, stem: str, source: Source | None) -> Manifest:
    """Make or fetch (source: None) the shards that are not there; gives the manifest of all."""
    options = {name: getattr(cfg, name) for name in DECIDING[cfg.source]}
    wanted = Manifest(cfg.source, options, source.inputs if source else [])
    manifest = manifests.of_same_work(folder, wanted)
    manifests.refuse_strangers(folder, stem)  # now: what is left over is known after the work
    if source:
        manifest = _write(cfg, folder, source, manifests.kept(folder, manifest))
    else:
        manifest = _ready_made(cfg, folder, manifest)
    manifests.refuse_others(folder, manifest)
    manifest = dataclasses.replace(manifest, complete=True)
    manifest.write(folder)
    return manifest


def _write(cfg: PrepareConfig, folder: Path, source: Source, manifest: Manifest) -> Manifest:
    """Write the shards that `manifest` lacks; gives the manifest of all."""
    for shard in manifest.shards:
        print(f"{folder / shard.file}: {shard.tokens:,} tokens, there already")
    if manifest.complete:
        return manifest
    cores = _cores()
    workers = min(cfg.workers or cores, cores)  # more only wait for each other
    if cfg.workers > cores:
        print(
            f"--workers={cfg.workers} is more than there are cores to run on: {cores} are started"
        )
    for number, stream in enumerate(source.streams):
        for grown in pipeline.write(stream, number, folder, manifest, workers=workers):
            manifest = grown
            shard = manifest.shards[-1]
            print(f"{folder / shard.file}: {shard.tokens:,} tokens")
    if not manifest.shards:
        raise BadInput(f"--source={cfg.source} holds no text; name other files with --input.")
    return manifest


def _cores() -> int:
    """How many cores this process may run on, as far as the system tells."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count()


def _ready_made(cfg: PrepareConfig, folder: Path, manifest: Manifest) -> Manifest:
    """Fetch the shards that are not there; gives the manifest of all. What is there is compared
    with what the Hub says of it."""
    files = fineweb.ready_made(
        folder, kind=cfg.fineweb_type, max_shards=cfg.max_shards, hub_url=cfg.hub
    )
    shards = [
        Shard(file["file"], len(tokens.read_shard(folder / file["file"])), file["sha256"])
        for file in files
    ]
    before = {shard.file: shard for shard in manifest.shards}
    for shard in shards:
        manifests.compare(folder, before.get(shard.file, shard), shard)
        print(f"{folder / shard.file}: {shard.tokens:,} tokens")
    return dataclasses.replace(manifest, shards=shards)


if __name__ == "__main__":
    program.run(main, PrepareConfig, goes_on=True)
