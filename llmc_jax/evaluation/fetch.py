"""The benchmarks' files, from where llm.c's scripts take them; what is there is not fetched."""

import os
import shutil
import tarfile
from pathlib import Path

from llmc_jax.config import BadInput
from llmc_jax.data.download import download

HELLASWAG_URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
MMLU_URL = "https://people.eecs.berkeley.edu/~hendrycks/data.tar"


def fetch_hellaswag(folder: Path) -> str:
    """The file of HellaSwag's 10,042 validation questions, in `folder`. Raises BadInput."""
    return str(download(HELLASWAG_URL, folder / "hellaswag_val.jsonl"))


def fetch_mmlu(folder: Path) -> str:
    """A glob of the files of MMLU's 14,042 test questions, in `folder`. Raises BadInput."""
    tests = folder / "mmlu_test"
    if not tests.is_dir():
        _unpack(download(MMLU_URL, folder / "mmlu_data.tar"), tests)
    return str(tests / "*.csv")


def _unpack(archive: Path, folder: Path) -> None:
    """The members data/test/*.csv of the archive as the files of `folder`, all or none."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        with tarfile.open(archive) as tar:
            for member in tar:
                path = Path(member.name)
                if member.isfile() and path.match("data/test/*.csv"):
                    (temporary / path.name).write_bytes(tar.extractfile(member).read())
        os.replace(temporary, folder)
    except (tarfile.TarError, EOFError) as error:
        raise BadInput(
            f"{archive} is not an archive, or a broken one; remove it, and it is fetched again."
        ) from error
    except OSError as error:
        raise BadInput(f"{folder} cannot be written: {error.strerror}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
