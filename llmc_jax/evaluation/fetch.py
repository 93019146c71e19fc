"""The benchmarks' files, from where llm.c's scripts take them; what is there is not fetched."""

from pathlib import Path

from llmc_jax.data.archive import unpack
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
        unpack(download(MMLU_URL, folder / "mmlu_data.tar"), tests, "data/test/*.csv")
    return str(tests / "*.csv")
