"""python -m llmc_jax.plot as a user has it: files, words, bad input."""

import resource
import subprocess
import sys

import pytest

from llmc_jax import fonts, plot
from llmc_jax.config import BadInput
from llmc_jax.view import picture
from tests.view.test_curves import MAIN_LOG, write


def test_runs_become_a_picture_and_a_page(tmp_path, capsys):
    runs = [str(write(tmp_path / name, "main.log", MAIN_LOG)) for name in ("one", "two")]
    plot.main([*runs, f"{runs[0]}/main.log"], plot.PlotConfig(levels="124M,1558M"))
    assert (tmp_path / "one" / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "GPT-3 1558M" in (tmp_path / "one" / "plot.html").read_text()
    assert not list((tmp_path / "two").glob("plot*"))
    screen = capsys.readouterr().out
    assert "two: val_loss, train_loss, learning_rate, grad_norm, hellaswag to step 2" in screen
    assert f"picture    {tmp_path}/one/plot.png" in screen


def test_output_names_both_files(tmp_path):
    run = write(tmp_path / "one", "main.log", MAIN_LOG + "s:3 trl:")
    plot.main([str(run)], plot.PlotConfig(output=f"{tmp_path}/a.b", levels=""))
    assert {"a.b.png", "a.b.html"} <= {path.name for path in tmp_path.iterdir()}
    with pytest.raises(BadInput, match=r"--output=.*nowhere/plot.png is in no directory"):
        plot.main([str(run)], plot.PlotConfig(output=f"{tmp_path}/nowhere/plot"))
    with pytest.raises(BadInput, match=r"--levels=125M: there is no '125M'; write some of 124M"):
        plot.main([str(run)], plot.PlotConfig(levels="125M"))
    (tmp_path / "half.html").mkdir()
    with pytest.raises(BadInput, match=r"half\.html is a directory; name a file"):
        plot.main([str(run)], plot.PlotConfig(output=f"{tmp_path}/half"))
    assert not (tmp_path / "half.png").exists()


def test_a_run_may_have_any_name(tmp_path, monkeypatch):
    """Also one that matplotlib would read as mathematics, or leave out of the legend."""
    runs = [str(write(tmp_path / name, "main.log", MAIN_LOG)) for name in ("a$x_{$", "_b")]
    close, figures = picture.plt.close, []
    monkeypatch.setattr(picture.plt, "close", figures.append)
    plot.main(runs, plot.PlotConfig(output=f"{tmp_path}/plot"))
    legend = [text.get_text().strip() for text in figures[0].axes[0].get_legend().get_texts()]
    close(figures[0])
    assert [name.split(",")[0] for name in legend] == ["a$x_{$", "a$x_{$", "_b", "_b"]


def test_a_name_in_any_script_is_drawn_without_a_word(tmp_path, recwarn):
    """By the first font that has its letters; where none has (U+E005 is nobody's), as boxes."""
    run = write(tmp_path / "运行 \ue005", "main.log", MAIN_LOG)
    plot.main([str(run)], plot.PlotConfig())
    assert (run / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_letters_are_taken_from_the_fonts_that_have_them():
    """matplotlib brings STIX along, with letters that its usual font lacks."""
    usual = fonts.fonts_for(["abc"])
    lacking = fonts.letters_of(["STIXGeneral"]) - fonts.letters_of(usual)
    letter = min(letter for letter in lacking if letter.isprintable())
    *first, other = fonts.fonts_for(["abc", letter])
    assert first == usual and letter in fonts.letters_of([other])
    with fonts.drawn([letter]):
        assert picture.plt.Text(text=letter).get_fontfamily() == [*usual, other]
    assert picture.plt.rcParams["font.family"] == usual


@pytest.mark.parametrize("output", [".", "/", "..", "./", "folder/"])
def test_output_is_no_directory(tmp_path, output):
    run = write(tmp_path / "one", "main.log", MAIN_LOG)
    with pytest.raises(BadInput, match=r"^--output=.* names only a directory; give PATH"):
        plot.main([str(run)], plot.PlotConfig(output=output))


def test_a_picture_that_does_not_fit_leaves_nothing(tmp_path):
    run = write(tmp_path / "one", "main.log", MAIN_LOG)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(BadInput, match=r"plot.png cannot be written: File too large\.$"):
            plot.main([str(run)], plot.PlotConfig())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(run.glob("plot*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one RUN or more is needed, and flags: see --help"),
        (["/nowhere"], "/nowhere is neither a run's directory"),
    ],
)
def test_bad_input(words, message):
    command = [sys.executable, "-m", "llmc_jax.plot", *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert message in result.stderr and "Traceback" not in result.stderr
