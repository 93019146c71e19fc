"""The manifest of a folder of shards: what they were made of, and the SHA-256 of each.

It is written again after each shard, and says where in the documents the next one begins: so work
that was stopped goes on with the same command. Of training it knows nothing.
"""

import dataclasses
import json
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


def agreed(folder: Path, wanted: Manifest) -> Manifest:
    """The folder's manifest where it is of the same work as `wanted`, else `wanted`, if none.

    Shards from the first missing one on are left out: they are made again. Raises BadInput where
    the work differs, or a shard is not what the manifest says.
    """
    found = read(folder)
    if found is None:
        return wanted
    path = folder / NAME
    if changed := _differences(found, wanted):
        raise BadInput(
            f"{path}: {', '.join(changed)}; give the old command, remove the folder, or name "
            f"another --output_dir."
        )
    kept = []
    for shard in found.shards:
        if not (folder / shard.file).exists():
            return dataclasses.replace(found, shards=kept, complete=False)
        check(folder, shard)
        kept.append(shard)
    return found


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
    return f"the text has changed ({', '.join(other[:3]) or 'there is less of it'})"


def check(folder: Path, shard: Shard) -> None:
    """Raises BadInput where the file is not there, or not what its manifest says."""
    path = folder / shard.file
    again = "remove it, and the command that made it makes it again"
    if (count := len(read_shard(path))) != shard.tokens:
        raise BadInput(f"{path} has {count} tokens and its manifest says {shard.tokens}; {again}.")
    if (digest := sha256_of(path)) != shard.sha256:
        raise BadInput(
            f"{path} has the SHA-256 {digest} and its manifest says {shard.sha256}; {again}."
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


def refuse_others(folder: Path, manifest: Manifest) -> None:
    """Raises BadInput where the folder has shards that the manifest does not know."""
    known = {shard.file for shard in manifest.shards}
    for path in sorted(folder.glob("*.bin")):
        if path.name not in known:
            raise BadInput(
                f"{path} is none of the {len(known)} shards of {folder / NAME}; remove it or name "
                f"another --output_dir."
            )
