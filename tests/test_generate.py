"""The program that writes texts: one as it grows, several, and answers to standard input."""

import io
import subprocess
import sys

import jax
import numpy as np
import pytest

from llmc_jax import config, generate, train
from llmc_jax.config import BadInput, ModelConfig
from llmc_jax.data.tokenizer import EOT, tokenizer
from llmc_jax.interop import llmc
from llmc_jax.models import gpt2
from tests import tiny

REPLACED = chr(0xFFFD)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the tiny model that has learned to count upwards; T is 16."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(config.MODELS, "tiny", tiny.MODEL)
        options = dict(batch_size=16, max_steps=90, val_every=0, checkpoint_every=90)
        files = tiny.write_data(folder)
        train.main(tiny.config(**options, **files, output_dir=f"{folder}/run"))
    return f"{folder}/run"


@pytest.fixture
def write(run, monkeypatch, capsys):
    """A function of flags: what is printed. The tokens are letters, the first of them the end."""
    monkeypatch.setattr(generate, "tokenizer", tiny.Letters)
    monkeypatch.setattr(generate, "EOT", 0)

    def write(**options):
        capsys.readouterr()
        generate.main(generate.GenerateConfig(**(dict(run=run) | options)))
        return capsys.readouterr().out

    return write


def test_a_prompt_is_continued(write):
    """The data mostly counts upwards, so the model does too; seeded, so twice the same."""
    options = dict(prompt=("ABCDEF",), tokens=8)
    assert write(**options, top_k=1) == "ABCDEFGHIJKLMN\n"
    assert write(**options, temperature=0.0) == "ABCDEFGHIJKLMN\n"
    assert write(**options, temperature=3.0, top_p=1e-6) == "ABCDEFGHIJKLMN\n"
    first, again, other = (write(**options, temperature=3.0, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_several_prompts_are_each_continued_as_alone(write, tmp_path):
    prompts, options = ("ABC", "PQ", "7", ""), dict(tokens=9, temperature=2.0)
    alone = [write(prompt=(prompt,), **options) for prompt in prompts]
    wanted = [f"=== {p!r}, seed 1337\n{text}" for p, text in zip(prompts, alone, strict=True)]
    assert write(prompt=prompts, **options) == "".join(wanted)
    (tmp_path / "prompts.txt").write_text("\n".join(prompts[:3]) + "\n")
    from_file = write(prompts=f"{tmp_path}/prompts.txt", batch_size=2, **options)
    assert from_file == "".join(wanted[:3])


def test_a_prompt_ends_with_its_line_only(tmp_path):
    """Not at what Unicode also ends lines with; a CR before the end is Windows'."""
    path = tmp_path / "prompts.txt"
    path.write_bytes("na\u00efve\u2028a\fb\rc\r\n\nd".encode())
    prompts = generate.read_prompts(generate.GenerateConfig(prompts=str(path)))
    assert prompts == ["na\u00efve\u2028a\fb\rc", "", "d"]


def test_tokens_that_the_tokenizer_does_not_have_are_replaced(write, monkeypatch):
    """The model's vocabulary is larger, as nanoGPT's is."""
    monkeypatch.setattr(tiny.Letters, "n_vocab", ord("I") - 33)
    text = write(prompt=("ABCDEF",), tokens=4, top_k=1)
    assert text == f"ABCDEFGH{REPLACED}{REPLACED}\n"
    assert generate.token_bytes(tokenizer(), EOT + 1).decode() == REPLACED


def test_a_model_without_an_end_of_a_text_is_refused(run):
    with pytest.raises(BadInput, match=r"run has a vocabulary of 90 tokens, without GPT-2's end"):
        generate.main(generate.GenerateConfig(run=run))


def test_samples_are_the_texts_of_the_next_seeds(write):
    options = dict(prompt=("ABC",), tokens=9, temperature=3.0)
    texts = [f"=== 'ABC', seed {seed}\n{write(**options, seed=seed)}" for seed in (5, 6, 7)]
    assert write(**options, seed=5, samples=3) == "".join(texts) and len(set(texts)) == 3


def test_many_samples_begin_at_once(write, monkeypatch):
    """None is made, nor kept, before its turn."""

    class Enough(Exception):
        pass

    def print_texts(_, rows):
        assert [seed for _, _, seed in rows] == [1337, 1338]
        raise Enough

    monkeypatch.setattr(generate, "print_texts", print_texts)
    with pytest.raises(Enough):
        write(prompt=("ABC",), samples=10**15, batch_size=2)


def test_a_full_context_ends_the_text_or_slides(write):
    """T is that of the training; a beginning, 'AB' and 14 more tokens, the last without a place."""
    text = write(prompt=("AB",), tokens=60, top_k=1)
    assert text == "ABCDEFGHIJKLMNOP\n"
    longer = write(prompt=("AB",), tokens=60, top_k=1, sequence_length=32)
    assert longer.startswith(text[:-1]) and len(longer) == 33
    slid = write(prompt=("AB",), tokens=40, top_k=1, slide=True)
    assert slid.startswith(text[:-1]) and len(slid) == 43
    end_of_prompt = write(prompt=("ABCDEFGHIJKLMNOPQRSTU",), tokens=3, top_k=1, slide=True)
    assert end_of_prompt == "ABCDEFGHIJKLMNOPQRSTUVWX\n"


def test_lines_of_standard_input_are_answered(write, monkeypatch, capsys):
    """As --prompt would be; one that is too long is refused, and the next is answered."""
    options = dict(tokens=5, top_k=1)
    wanted = [write(prompt=(prompt,), **options) for prompt in ("ABC", "PQR")]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"ABC\n{'A' * 40}\nPQR"))
    assert write(**options, interactive=True) == "".join(wanted)


def test_standard_input_that_is_no_text_is_refused(write, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n"), "utf-8"))
    with pytest.raises(BadInput, match="--interactive: standard input is not UTF-8"):
        write(interactive=True)


def test_a_text_grows_by_whole_characters():
    text = generate.Text()
    tokens = tokenizer().encode_ordinary("naïve 🫠 ☃")
    parts = [text.add(token) for token in tokens]
    assert "".join(parts) == "naïve 🫠 ☃" and "" in parts and text.end() == ""
    first, *_ = tokenizer().encode_ordinary("🫠")
    assert (text.add(first), text.end()) == ("", REPLACED)


@pytest.mark.parametrize("broken", [b"\xff", b"\xe2\x28", b"\xf0\x9f\x99\xf0", b"\xff\xe2"])
@pytest.mark.parametrize("after", [b"a", b"\x98\x83"])
def test_broken_characters_are_replaced(broken, after, monkeypatch):
    """Also where a whole one begins in the same token."""
    monkeypatch.setattr(generate, "token_bytes", lambda _, token: token)
    text = generate.Text()
    assert text.add(broken) + text.add(after) + text.end() == (broken + after).decode(
        errors="replace"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(run=""), "--run is needed"),
        (dict(run="/nowhere"), "--run=/nowhere is no directory"),
        (dict(step=3), "--step=3 was not saved; .* has 90"),
        (dict(top_k=91), "--top_k=91 must be from 0 to 90"),
        (dict(top_p=0.0), r"--top_p=0.0 must be above 0"),
        (dict(top_p=1.5), r"--top_p=1.5 must be above 0 and at most 1"),
        (dict(sequence_length=33), "--sequence_length=33 must be from 1 to 32"),
        (dict(prompt=("A" * 16,)), r"the prompt 'A+'... has 17 tokens .* context is 16; .*--slide"),
        (dict(prompt=("\x7f",)), "has token 94 of GPT-2's tokenizer, but .* ends at 89"),
        (dict(prompt=("A",), interactive=True), "--prompt, --prompts and --interactive all give"),
        (dict(interactive=True, samples=2), "--samples is for --prompt and --prompts"),
        (
            dict(prompts="/nowhere"),
            "--prompts=/nowhere cannot be read: No such file or directory; name",
        ),
        (dict(prompts="/dev/null"), "--prompts=/dev/null is empty"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused(write, options, message):
    with pytest.raises(BadInput, match=message):
        write(**options)


def test_the_command_line(tmp_path):
    """A model file; prompts given twice, and from standard input; a mistake in one sentence."""
    model = ModelConfig(L=1, NH=1, C=8, maxT=16)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape), gpt2.shapes(model))
    llmc.write_model(tmp_path / "model.bin", model, jax.tree.map(np.float32, params))

    def call(*flags, stdin=""):
        command = [sys.executable, "-m", "llmc_jax.generate", f"--model={tmp_path}/model.bin"]
        run = dict(capture_output=True, text=True, check=False, timeout=300)
        return subprocess.run([*command, "--tokens=3", *flags], input=stdin, **run)

    several = call("--prompt=The", "--prompt=of, the")
    assert several.returncode == 0 and several.stderr == ""
    texts = several.stdout.split("=== ")[1:]
    assert [text.split("\n")[0] for text in texts] == ["'The', seed 1337", "'of, the', seed 1337"]
    answers = call("--interactive", stdin="The\nof, the\n")
    assert answers.returncode == 0
    assert answers.stdout == "".join(text.split("\n", 1)[1] for text in texts)
    refused = call("--prompt=" + "the " * 30)
    assert refused.returncode == 2 and refused.stdout == "" and "Traceback" not in refused.stderr
    assert "tokens (one marks its beginning) and the context is 16" in refused.stderr
