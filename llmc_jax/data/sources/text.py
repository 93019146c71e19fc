"""Any UTF-8 text files; each is a document."""

import glob

from llmc_jax.config import BadInput


def documents(pattern: str) -> list[str]:
    """The texts of the files that `pattern` (globs separated by commas) names, in order.

    Raises BadInput where nothing matches, a file is empty, unreadable or not UTF-8.
    """
    if not pattern:
        raise BadInput("--source=text needs --input: files or globs, separated by commas.")
    texts = []
    for part in pattern.split(","):
        paths = sorted(glob.glob(part))
        if not paths:
            raise BadInput(f"--input={part} matches no file; correct the name or the pattern.")
        texts += [_read(path) for path in paths]
    return texts


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path} is not UTF-8 (byte {error.start}); convert it, for instance with iconv."
        ) from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.") from error
    if not text:
        raise BadInput(f"{path} is empty; leave it out of --input.")
    return text
