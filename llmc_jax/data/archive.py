"""Files out of a tar archive: all or none."""

import gzip
import os
import shutil
import tarfile
import zlib
from pathlib import Path

from llmc_jax.config import BadInput


def unpack(archive: Path, folder: Path, pattern: str, *, fetched: bool = True) -> None:
    """The members that match `pattern` as the files of `folder`, which is new. fetched: False where
    the user has named the archive, with --input. Raises BadInput."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        with tarfile.open(archive) as tar:
            for member in tar:
                path = Path(member.name)
                if member.isfile() and path.match(pattern):
                    with open(temporary / path.name, "wb") as file:
                        shutil.copyfileobj(tar.extractfile(member), file)
        os.replace(temporary, folder)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        mend = "remove it, and it is fetched again" if fetched else "name another with --input"
        raise BadInput(f"{archive} is not an archive, or a broken one; {mend}.") from error
    except OSError as error:
        raise BadInput(f"{folder} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
