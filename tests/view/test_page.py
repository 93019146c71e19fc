"""The page: small, self-contained, true to the run, and without an error in a real browser."""

import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest

from llmc_jax.view.curves import Curve, Run
from llmc_jax.view.levels import levels
from llmc_jax.view.page import save_page

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
NAMES = ("train_loss", "learning_rate", "grad_norm", "tokens_per_s")


def make_run(name="run", steps=20_000) -> Run:
    """A long run, with a loss that was no number once."""
    rng = np.random.default_rng(0)
    at = np.arange(1, steps + 1)
    curves = {key: Curve(at, 3 + rng.normal(size=steps)) for key in NAMES}
    curves["train_loss"].values[steps // 2] = math.nan
    curves["val_loss"] = Curve(at[::250], 3 + 1 / at[::250])
    return Run(name, curves, [])


def data_of(path) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.S)[1])


def test_a_long_run_is_small_and_needs_no_other_file(tmp_path):
    save_page([make_run()], tmp_path / "page.html", levels("124M"))
    text = (tmp_path / "page.html").read_text()
    assert len(text) < 1_000_000
    assert not re.search(r"""(src|href)\s*=|@import|url\(["']?(http|//)""", text)
    # nothing but the name space of SVG looks like an address
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}


def test_what_is_in_the_page_are_points_of_the_run(tmp_path):
    run = make_run()
    save_page([run], tmp_path / "page.html")
    (shown,) = data_of(tmp_path / "page.html")["runs"]
    steps = np.array(shown["curves"]["grad_norm"]["steps"])
    values = run.curves["grad_norm"].values[steps - 1]
    np.testing.assert_allclose(shown["curves"]["grad_norm"]["values"], values, rtol=1e-5)
    assert None in shown["curves"]["train_loss"]["values"]  # the loss that was no number
    assert shown["summary"][0] == 20_000 and shown["summary"][3] == pytest.approx(3, abs=1e-3)


def test_a_name_cannot_break_out_of_the_page(tmp_path):
    save_page([make_run("</script><script>alert(1)//", steps=10)], tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("<script") == 2
    assert data_of(tmp_path / "page.html")["runs"][0]["name"].startswith("</script>")


def browse(page, *flags: str) -> tuple[str, list[str]]:
    """(the document after its script has run, messages of the console) in headless Chromium."""
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
        "--virtual-time-budget=2000", f"--user-data-dir={page.parent}/profile", *flags,
        "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout, re.findall(r"CONSOLE.*", done.stderr)


@pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine (apt-get install chromium)")
def test_the_browser_draws_it_without_an_error(tmp_path):
    page = tmp_path / "page.html"
    save_page([make_run("one", 3000), make_run("two", 500)], page, levels("124M"))
    document, console = browse(page)
    assert console == []
    panels = re.findall(r"<svg.*?</svg>", document, re.S)
    assert len(panels) == 4
    # of each run a curve and its mean; only the learning rate has no mean
    assert [svg.count('<path class="curve') for svg in panels] == [6, 2, 4, 4]
    assert "GPT-2 124M on FineWeb: 3.425" in panels[0] and "NaN" not in document
    assert "step 0" not in document  # nothing is pointed at


USE_IT = """<script>
const svg = document.querySelector("svg"), box = svg.getBoundingClientRect();
const at = (kind, part) => svg.dispatchEvent(new PointerEvent(kind, {bubbles: true,
  clientX: box.left + part * box.width, clientY: box.top + 50}));
at("pointermove", 0.5);
document.body.dataset.tip = document.querySelector(".tip").innerText;
document.querySelector("button").click();
</script></body>"""


@pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine (apt-get install chromium)")
def test_pointing_tells_numbers_and_a_name_hides_its_run(tmp_path):
    page = tmp_path / "page.html"
    save_page([make_run("one", 3000), make_run("two", 500)], page)
    page.write_text(page.read_text().replace("</body>", USE_IT))
    document, console = browse(page)
    assert console == []
    tip = re.search(r'data-tip="([^"]*)"', document)[1]
    assert re.search(r"one train, step 1,\d{3}: \d", tip) and "two train, step 500: " in tip
    panels = re.findall(r"<svg.*?</svg>", document, re.S)
    assert [svg.count('<path class="curve') for svg in panels] == [3, 1, 2, 2]
    # and a script that fails would have been seen
    page.write_text(page.read_text().replace("drawAll();", "drawNothing();"))
    _, console = browse(page)
    assert any("drawNothing is not defined" in message for message in console)
