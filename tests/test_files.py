"""Files that appear whole or not at all."""

import os
import resource
from contextlib import nullcontext

import pytest

from llmc_jax import files
from llmc_jax.config import BadInput
from llmc_jax.files import new_file, refuse_unwritable, refuse_unwritable_folder


def write(path, **options) -> None:
    with new_file(path, **options) as file:
        file.write(b"new")


def test_all_of_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """And its name is there before the next thing is done."""
    done = []

    def note(name, about):
        real = getattr(os, name)

        def noting(*args):
            done.append((name, about(*args)))
            return real(*args)

        monkeypatch.setattr(os, name, noting)

    note("fsync", lambda number: os.fstat(number).st_size if os.path.isfile(number) else "folder")
    note("replace", lambda _, path: path.name)
    write(tmp_path / "a")
    assert done == [("fsync", 3), ("replace", "a"), ("fsync", "folder")]


def test_the_first_thing_that_goes_wrong_is_what_is_said(tmp_path, monkeypatch):
    """On a disk that cannot be written, what was not made cannot be removed either."""

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(files, "open", refuse, raising=False)
    monkeypatch.setattr(files.Path, "unlink", refuse)
    with pytest.raises(BadInput, match="a cannot be written: Read-only file system"):
        write(tmp_path / "a")


def test_a_file_that_does_not_fit_leaves_what_was_there(tmp_path):
    (tmp_path / "a").write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2, before[1]))
    try:
        with pytest.raises(BadInput, match="a cannot be written: File too large"):
            write(tmp_path / "a", overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match="pipe is no file that can be replaced; name another"):
        write(tmp_path / "pipe", overwrite=True)
    with pytest.raises(BadInput, match="cannot be written: File name too long"):
        write(tmp_path / ("a" * 300))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("new", ""),
        ("none/new", "--output=.*/none/new is in no directory that exists; make it first"),
        ("old/new", "--output=.*/old/new cannot be written: Not a directory; name another"),
        ("old", "--output=.*/old exists; add --overwrite to replace it, or name another file"),
        (".", "--output=.* is a directory; name a file"),
        ("a" * 253, "cannot be written: File name too long"),  # as new_file's temporary name
        ("/proc/new", "--output=/proc/new cannot be written: No such file or directory; name ano"),
        ("/dev/full", "--output=/dev/full is no file that can be replaced"),
    ],
)
def test_what_cannot_be_written_is_known_before(tmp_path, path, message):
    """And nothing is left behind, nor changed."""
    (tmp_path / "old").write_text("old")
    with pytest.raises(BadInput, match=message) if message else nullcontext():
        refuse_unwritable(tmp_path / path, "--output=")
    if message:
        with pytest.raises(BadInput):
            write(tmp_path / path)
    refuse_unwritable(tmp_path / "old", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_folder_that_cannot_be_made_is_known_before(tmp_path):
    (tmp_path / "old").touch()
    refuse_unwritable_folder(tmp_path)
    refuse_unwritable_folder(tmp_path / "a" / "b")
    for path in (tmp_path / "old", tmp_path / "old" / "a", "/proc/new", tmp_path / ("N" * 300)):
        with pytest.raises(BadInput, match=f"^--output_dir={path} cannot be made: (N|File n)"):
            refuse_unwritable_folder(path, "--output_dir=")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
