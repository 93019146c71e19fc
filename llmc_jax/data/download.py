"""Files from the network: tried again, continued where they broke off, checked, whole or not there.

    path = download(URL, "data/downloads/text.txt", sha256="86c4...")

What has come so far stands beside the file as NAME.part, with the server's tag of that version in
NAME.part.etag. A later call goes on from it, in the same process or in another.
"""

import contextlib
import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from llmc_jax.config import BadInput
from llmc_jax.files import sha256_of

TIMEOUT_S = 60  # without a byte
FIRST_WAIT_S = 1.0  # before the second try; each further wait is twice as long
LONGEST_WAIT_S = 60.0
CHUNK = 1 << 20  # bytes read at once
TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}  # said by a server that may soon say another thing


class Unreachable(Exception):
    """An address that gives no answer; the message is the reason."""


class _Failed(Exception):
    """A try that another one may mend; the message is the reason."""


def download(
    url: str,
    path: str | Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    retries: int = 5,
) -> Path:
    """Fetch `url` to the file `path`, whose folder is made; gives the path.

    sha256, size (bytes): what the file must have; a file that is there already and has it is not
    fetched again. retries: so many tries in a row may bring nothing new before it is given up.

    Raises BadInput where the file cannot be had, or is not the one that was asked for. The message
    says what to fetch by hand and where to put it.
    """
    path = Path(path)
    if path.exists():
        if problem := _unusable(path, sha256, size):
            raise BadInput(f"{path} {problem}; remove it, and it is fetched again from {url}.")
        return path
    part = path.with_name(path.name + ".part")
    make_folder(path.parent)
    # Where it has come whole, only the renaming is left of a download that was killed.
    if sha256 is None or not part.exists() or _unusable(part, sha256, size):
        _fetch_all(url, path, part, sha256, size, retries)
    os.replace(part, path)
    _tag_file(part).unlink(missing_ok=True)
    return path


def get(url: str, *, retries: int = 5):
    """The few bytes at `url`, and the answer's headers. Raises Unreachable."""
    for failures in range(retries + 1):
        request = urllib.request.Request(url, headers={"User-Agent": "llmc_jax"})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                return response.read(), response.headers
        except urllib.error.HTTPError as error:
            reason = f"the server says {error.code} {error.reason}"
            if error.code not in TRY_AGAIN:
                break
        except (OSError, http.client.HTTPException) as error:
            reason = _reason(error)
        if failures < retries:
            time.sleep(min(FIRST_WAIT_S * 2**failures, LONGEST_WAIT_S))
    raise Unreachable(reason)


def by_hand(url: str, path: str | Path, reason: str) -> BadInput:
    """The error that says that `url` could not be had, why, and where to put it instead."""
    return BadInput(
        f"{url} cannot be downloaded ({reason}); fetch it by hand, put it at {path}, and give the "
        f"same command again."
    )


def make_folder(folder: Path) -> None:
    """Make the folder where there is none. Raises BadInput."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{folder} cannot be made: {error.strerror}; make room for it.") from error


def _fetch_all(url, path, part, sha256, size, retries) -> None:
    """All of `url` into `part`, checked."""
    failures, seen, wrong = 0, _size(part), ""
    while True:
        try:
            _fetch(url, part, trusted=sha256 is not None)
            if not (problem := _difference(part, sha256, size)):
                return
            _discard(part)
            if wrong:  # from the first byte on, and again
                raise by_hand(url, path, f"what comes {problem}")
            wrong, reason = problem, f"what came {problem}"
        except _Failed as error:
            reason = str(error)
        except urllib.error.HTTPError as error:
            raise by_hand(url, path, f"the server says {error.code} {error.reason}") from error
        except ValueError as error:  # of urllib: no address at all
            raise by_hand(url, path, str(error)) from error
        failures = 1 if _size(part) > seen else failures + 1
        seen = max(seen, _size(part))
        if failures > retries:
            raise by_hand(url, path, reason)
        time.sleep(min(FIRST_WAIT_S * 2 ** (failures - 1), LONGEST_WAIT_S))


def _fetch(url: str, part: Path, *, trusted: bool) -> None:
    """One try: append to `part` what it lacks, or write it anew where the server wants that.

    trusted: the whole is checked afterwards, so no tag is needed to go on. Raises _Failed, or
    HTTPError for an answer that will stay the same.
    """
    have, tag = _size(part), _read_tag(part)
    headers = {"User-Agent": "llmc_jax"}
    if have and (tag or trusted):
        headers["Range"] = f"bytes={have}-"
        if tag:
            headers["If-Range"] = tag
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing follows what is there: perhaps it is of another version
            _discard(part)
        elif error.code not in TRY_AGAIN:
            raise
        raise _Failed(f"the server says {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Failed(_reason(error)) from error
    with response:
        if response.status != 206:
            have = 0  # the whole, whatever was asked for
        elif (first := _first_byte(response)) != have:
            _discard(part)  # then the next try asks for no part
            raise _Failed(f"the server sends bytes from {first} on instead of {have}")
        _receive(response, part, have)


def _receive(response, part: Path, have: int) -> None:
    """The rest of the file, from byte `have` on. Raises _Failed where the connection ends early."""
    total = _total(response, have)
    with (
        _written(part, have, response.headers.get("ETag", "")) as file,
        tqdm(
            desc=part.name.removesuffix(".part"), initial=have, total=total, unit="B",
            unit_scale=True, disable=None,
        ) as bar,
    ):  # fmt: skip
        while True:
            try:
                chunk = response.read(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _Failed(_reason(error)) from error
            if not chunk:
                break
            _write(file, chunk)
            have += len(chunk)
            bar.update(len(chunk))
    if total is not None and have < total:
        raise _Failed(f"the connection ended after {have} of {total} bytes")


def _unusable(path: Path, sha256: str | None, size: int | None) -> str:
    """What is wrong with a file that is there, '' for nothing."""
    try:
        return _difference(path, sha256, size) if path.is_file() else "is no file"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _difference(path: Path, sha256: str | None, size: int | None) -> str:
    """How the file differs from what was asked for, '' where it does not."""
    if size is not None and (now := path.stat().st_size) != size:
        return f"has {now} bytes instead of {size}"
    if sha256 is not None and (now := sha256_of(path)) != sha256:
        return f"has the SHA-256 {now} instead of {sha256}"
    return ""


def _first_byte(response) -> int:
    """Where in the file a partial answer begins; -1 where it does not say."""
    words = response.headers.get("Content-Range", "").removeprefix("bytes ").split("-")
    return int(words[0]) if words[0].isdigit() else -1


def _total(response, have: int) -> int | None:
    """Bytes of the whole file, None where the answer does not say; it may hold less than all that
    follows byte `have`."""
    whole = response.headers.get("Content-Range", "").rpartition("/")[2]
    if response.status == 206 and whole.isdigit():
        return int(whole)
    length = response.headers.get("Content-Length")
    return have + int(length) if length else None


def _reason(error: Exception) -> str:
    """What went wrong with the connection, in words."""
    reason = getattr(error, "reason", error)  # URLError holds what the socket raised
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__


@contextlib.contextmanager
def _written(part: Path, have: int, tag: str):
    """`part`, to be continued at byte `have`; where that is 0, of the version `tag`."""
    try:
        if have == 0:  # the old tag goes before the old bytes, the new one comes after them
            _tag_file(part).unlink(missing_ok=True)
        file = open(part, "r+b" if have else "wb")  # noqa: SIM115
        if have == 0 and tag and not tag.startswith("W/"):  # a weak tag promises no equal bytes
            _tag_file(part).write_text(tag)
    except OSError as error:
        raise _unwritable(part, error) from error
    with file:
        file.seek(have)
        yield file


def _write(file, chunk: bytes) -> None:
    """A full disk is no failure of the network: it is not tried again."""
    try:
        file.write(chunk)
        file.flush()
    except OSError as error:
        raise _unwritable(file.name, error) from error


def _unwritable(path: str | Path, error: OSError) -> BadInput:
    return BadInput(
        f"{path} cannot be written: {error.strerror}; make room, and give the same command again."
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tag_file(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _read_tag(part: Path) -> str:
    file = _tag_file(part)
    return file.read_text() if file.exists() else ""


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag_file(part).unlink(missing_ok=True)
