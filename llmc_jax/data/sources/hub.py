"""Files of data sets on Hugging Face's Hub: listed with their checksums, then downloaded."""

import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from llmc_jax.config import BadInput
from llmc_jax.data.download import Unreachable, download, get, make_folder
from llmc_jax.data.sources import describe
from llmc_jax.files import new_file

LISTING = "hub.json"  # beside the files: a later run takes the same ones, and asks nobody


class Remote(NamedTuple):
    """A folder of a data set."""

    hub: str  # https://huggingface.co, or a mirror
    repo: str
    folder: str = ""

    @property
    def page(self) -> str:
        """Where a person finds the files."""
        return f"{self.hub}/datasets/{self.repo}/tree/main/{self.folder}".rstrip("/")


class Listing(NamedTuple):
    """The files of a Remote, as they were when it was listed."""

    repo: str
    folder: str
    commit: str
    files: list[dict]  # file, bytes, sha256 (None of small ones: git knows none), sorted

    def url(self, hub: str, file: str) -> str:
        """Where a file is on this hub."""
        path = f"{self.folder}/{file}".strip("/")
        return f"{hub}/datasets/{self.repo}/resolve/{self.commit}/{path}"


def fetch(remote: Remote, pattern: str, into: Path, *, names: list[str] | None = None):
    """The files of `remote` that match `pattern` (of these, where given, only `names`), in order
    of their names: [(path, description for the manifest)].

    Each is compared with the size and the SHA-256 that the Hub says. Where the Hub cannot be
    reached, the files that lie in `into` are taken, if there are any. Raises BadInput.
    """
    try:
        listing = _listing(remote, into)
    except Unreachable as error:
        return _fetched_by_hand(remote, pattern, into, names, error)
    chosen = [f for f in listing.files if fnmatch(f["file"], pattern)]
    if names is not None:
        chosen = [f for f in chosen if f["file"] in names]
    if not chosen:
        raise BadInput(f"{remote.page} has no {pattern}; look there what has become of it.")
    paths = [
        download(listing.url(remote.hub, f["file"]), into / f["file"], size=f["bytes"],
                 sha256=f["sha256"])
        for f in chosen
    ]  # fmt: skip
    return list(zip(paths, chosen, strict=True))


def _fetched_by_hand(remote, pattern, into, names, error):
    """What lies in `into` already, and has been fetched by hand."""
    paths = [path for path in sorted(into.glob(pattern)) if names is None or path.name in names]
    if not paths or (names is not None and len(paths) < len(names)):
        wanted = pattern if not names or len(names) > 3 else ", ".join(names)
        raise BadInput(
            f"{remote.page} cannot be listed ({error}); fetch {wanted} by hand, put it into "
            f"{into}, and give the same command again."
        )
    print(f"{remote.page} cannot be listed ({error}): taking the {len(paths)} files in {into}")
    return [(path, describe(path)) for path in paths]


def _listing(remote: Remote, into: Path) -> Listing:
    """The listing that is kept in `into`, or what the Hub says, which is kept there from now on."""
    if kept := _kept(remote, into):
        return kept
    try:
        commit, entries = _entries(f"{remote.hub}/api/datasets/{remote.repo}", remote.folder)
        files = [
            dict(
                file=entry["path"].rsplit("/", 1)[-1],
                bytes=entry["size"],
                sha256=(entry.get("lfs") or {}).get("oid"),
            )
            for entry in sorted(entries, key=lambda entry: entry["path"])
        ]
    except (ValueError, KeyError, TypeError) as error:  # a proxy, say, that wants a password
        raise Unreachable("what answers there is not the Hub") from error
    make_folder(into)
    listing = Listing(remote.repo, remote.folder, commit, files)
    with new_file(into / LISTING, overwrite=True) as file:
        file.write(json.dumps(listing._asdict(), indent=1).encode())
    return listing


def _kept(remote: Remote, into: Path) -> Listing | None:
    """The listing in `into`; None where there is none, a broken one, or another folder's."""
    try:
        listing = Listing(**json.loads((into / LISTING).read_bytes()))
        files = [{key: file[key] for key in ("file", "bytes", "sha256")} for file in listing.files]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    same = (listing.repo, listing.folder) == (remote.repo, remote.folder)
    return listing._replace(files=files) if same else None


def _entries(api: str, folder: str) -> tuple[str, list[dict]]:
    """The newest commit of the data set, and what it says of the files in the folder."""
    commit = json.loads(get(f"{api}/revision/main")[0])["sha"]
    entries, url = [], f"{api}/tree/{commit}/{folder}".rstrip("/")
    while url:
        body, headers = get(url)
        entries += [entry for entry in json.loads(body) if entry["type"] == "file"]
        following = re.search(r'<([^>]*)>;\s*rel="next"', headers.get("Link", ""))
        url = following and following[1]
    return commit, entries
