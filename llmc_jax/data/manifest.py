"""The manifest of a folder of shards: what they were made of, and the SHA-256 of each.

It is written again after each shard, and says where in the documents the next one begins: so work
that was stopped goes on with the same command. Of training it knows nothing.
"""

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path

from llmc_jax.config import BadInput
from llmc_jax.data.tokenizer import EOT
from llmc_jax.data.tokens import read_shard
from llmc_jax.files import new_file, sha256_of

NAME = "manifest.json"
TOKENIZER = {"name": "gpt2", "vocabulary": EOT + 1, "end_of_text": EOT}


@dataclass(frozen=True)
class Shard:
    file: str
    tokens: int
    sha256: str
    stream: int = 0  # of the source's streams of documents
    # Where the stream's next shard begins: at this token of this document, its end-of-text token
    # counted.
    next_document: int = 0
    next_token: int = 0


@dataclass(frozen=True)
class Manifest:
    source: str
    options: dict  # the flags that decide what the shards hold
    inputs: list[dict]  # file, bytes, sha256
    shards: list[Shard] = dataclasses.field(default_factory=list)
    complete: bool = False
    tokenizer: dict = dataclasses.field(default_factory=lambda: TOKENIZER)

    def write(self, folder: Path) -> None:
        """The manifest as the folder's, at once. Raises BadInput."""
        totals = {
            split: sum(shard.tokens for shard in self.shards if f"_{split}_" in shard.file)
            for split in ("train", "val")
        }
        values = dataclasses.asdict(self) | {"tokens": totals}
        with new_file(folder / NAME, overwrite=True) as file:
            file.write(json.dumps(values, indent=1).encode() + b"\n")


def read(folder: Path) -> Manifest | None:
    """The folder's manifest; None where it has none. Raises BadInput for a broken one."""
    path = folder / NAME
    try:
        values = json.loads(path.read_bytes())
        values.pop("tokens")
        shards = [Shard(**shard) for shard in values.pop("shards")]
        return Manifest(shards=shards, **values)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadInput(
            f"{path} is no manifest of shards; remove it, and shards are compared as they are made."
        ) from error


def of_same_work(folder: Path, wanted: Manifest) -> Manifest:
    """The folder's manifest, or where it has none, `wanted`. Raises BadInput where it is of other
    work than `wanted`; its shards are not looked at."""
    found = read(folder)
    if found is None:
        return wanted
    if changed := _differences(found, wanted):
        raise BadInput(
            f"{folder / NAME}: {', '.join(changed)}; give the old command, remove the folder, or "
            f"name another --output_dir."
        )
    return found


def kept(folder: Path, manifest: Manifest) -> Manifest:
    """The manifest of the shards that are there. Those from the first missing one on are left out:
    they are made again. Raises BadInput where one is not what the manifest says."""
    shards = []
    for shard in manifest.shards:
        if not (folder / shard.file).exists():
            return dataclasses.replace(manifest, shards=shards, complete=False)
        check(folder, shard)
        shards.append(shard)
    return manifest


def _differences(found: Manifest, wanted: Manifest) -> list[str]:
    """In which respects the two are of different work."""
    before, now = ({"source": m.source} | m.options for m in (found, wanted))
    changed = [
        f"--{name} was {before.get(name)} and is now {now.get(name)}"
        for name in now
        if before.get(name) != now.get(name)
    ]
    if not changed and found.inputs != wanted.inputs:
        changed.append(_other_text(found.inputs, wanted.inputs))
    if found.tokenizer != wanted.tokenizer:
        changed.append(f"the tokenizer was {found.tokenizer} and is now {wanted.tokenizer}")
    return changed


def _other_text(before: list[dict], now: list[dict]) -> str:
    """How two lists of input files differ, in words."""
    was, is_now = ([file["file"] for file in files] for files in (before, now))
    other = [file["file"] for file in now if file not in before]
    if not other and sorted(was) == sorted(is_now):
        return (
            f"the files were in the order {', '.join(was[:3])} and are now in the order "
            f"{', '.join(is_now[:3])}"
        )
    if was == is_now and all(a["sha256"] == b["sha256"] for a, b in zip(before, now, strict=True)):
        return f"validation began elsewhere in {other[0]}"
    return f"the text has changed ({', '.join(other[:3]) or 'there is less of it'})"


def check(folder: Path, shard: Shard) -> None:
    """Raises BadInput where the file is not there, or not what its manifest says."""
    path = folder / shard.file
    there = dict(tokens=len(read_shard(path)), sha256=sha256_of(path))
    compare(folder, shard, dataclasses.replace(shard, **there))


def compare(folder: Path, said: Shard, found: Shard) -> None:
    """Raises BadInput where a shard is not what its manifest says."""
    path = folder / said.file
    again = "remove it, and the command that made it makes it again"
    if found.tokens != said.tokens:
        raise BadInput(
            f"{path} has {found.tokens} tokens and its manifest says {said.tokens}; {again}."
        )
    if found.sha256 != said.sha256:
        raise BadInput(
            f"{path} has the SHA-256 {found.sha256} and its manifest says {said.sha256}; {again}."
        )


def verify(folder: Path) -> Manifest:
    """The folder's manifest, with which all of its shards agree. Raises BadInput."""
    manifest = read(folder)
    if manifest is None:
        raise BadInput(
            f"{folder / NAME} is not there; --verify needs shards made with this command."
        )
    for shard in manifest.shards:
        check(folder, shard)
    if not manifest.complete:
        raise BadInput(
            f"{folder / NAME} is of work that was stopped (its {len(manifest.shards)} shards are "
            f"whole); give the command that made it again."
        )
    refuse_others(folder, manifest)
    return manifest


def refuse_strangers(folder: Path, stem: str) -> None:
    """Raises BadInput where the folder has shards that no work of this stem makes."""
    for path in sorted(folder.glob("*.bin")):
        if not re.fullmatch(rf"{re.escape(stem)}_(train|val)_\d{{6,}}\.bin", path.name):
            raise BadInput(
                f"{path} is none of the shards {stem}_*.bin; remove it or name another "
                f"--output_dir."
            )


def refuse_others(folder: Path, manifest: Manifest) -> None:
    """Raises BadInput where the folder has shards that the manifest does not know."""
    known = {shard.file for shard in manifest.shards}
    for path in sorted(folder.glob("*.bin")):
        if path.name not in known:
            raise BadInput(
                f"{path} is none of the {len(known)} shards of {folder / NAME}; remove it or name "
                f"another --output_dir."
            )
