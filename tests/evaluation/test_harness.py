"""What lm_eval is answered: log-probabilities, the likeliest or not, texts; also without it."""

import json
import sys
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from llmc_jax import lm_eval, ops, program
from llmc_jax.config import BadInput, ModelConfig
from llmc_jax.data.tokenizer import EOT, tokenizer
from llmc_jax.evaluation import harness as harness_module
from llmc_jax.evaluation.harness import Harness, encode_pair
from llmc_jax.interop import llmc
from llmc_jax.models import gpt2
from llmc_jax.trained import Opened, Trained
from llmc_jax.training import parallel, placement
from tests import quick

MODEL = ModelConfig(L=1, NH=2, C=32, maxT=16)
TEXT = "The kettle boils and the woman pours the tea into two small cups by the window of the room."


LOGITS = quick.jit(partial(gpt2.logits, ops.select("jnp", "cpu")[0], cfg=MODEL))


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    shapes = gpt2.shapes(MODEL)
    params = jax.tree.map(lambda s: (0.2 * rng.normal(size=s.shape)).astype(np.float32), shapes)
    params.wte[MODEL.V :] = 0
    return params


@pytest.fixture(scope="module")
def harness(params):
    chosen, _ = ops.select("auto", "cpu")
    mesh = parallel.make_mesh()
    trained = Trained(MODEL, placement.replicate(params, mesh), "float32")
    return Harness(Opened(trained, mesh, chosen, 16, "float32"), batch_size=4)


def log_probabilities(params, tokens):
    """Of tokens[1:], (n,), and whether each is the likeliest; float64."""
    inputs = np.zeros((1, MODEL.maxT), np.int32)
    inputs[0, : len(tokens) - 1] = tokens[:-1]
    z = np.asarray(LOGITS(params, inputs)[0, : len(tokens) - 1], np.float64)
    z -= z.max(axis=1, keepdims=True)
    of_all = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    targets = np.array(tokens[1:])
    return of_all[np.arange(len(targets)), targets], of_all.argmax(axis=1) == targets


def test_a_pair_is_tokenized_as_one_text():
    encode = tokenizer().encode_ordinary
    assert encode_pair("The tea", " is hot") == (encode("The tea"), encode(" is hot"))
    # Spaces at the end of the context belong to the word behind them.
    assert encode_pair("The tea ", "is hot") == (encode("The tea"), encode(" is hot"))
    assert encode_pair("", "Tea") == ([EOT], encode("Tea"))


def test_loglikelihood(harness, params):
    pairs = [("The tea", " is hot"), ("", "Tea"), (TEXT, " She drinks."), ("A", " b c d e f g")]
    for (context, continuation), (got, _) in zip(pairs, harness.loglikelihood(pairs), strict=True):
        before, after = encode_pair(context, continuation)
        wanted, _ = log_probabilities(params, (before + after)[-17:])
        assert got == pytest.approx(wanted[-len(after) :].sum(), abs=1e-4)
    assert harness.loglikelihood([]) == []


def test_what_the_model_writes_itself_is_the_likeliest(harness):
    (text,) = harness.generate_until([("The tea", dict(until=[], max_gen_toks=3))])
    written = tokenizer().encode_ordinary(text)
    (_, itself), (_, other) = harness.loglikelihood([("The tea", text), ("The tea", text + " x")])
    assert len(written) == 3 and itself and not other


def test_rolling_predicts_each_token_once_and_the_last_with_all_context(harness, params):
    tokens = [EOT, *tokenizer().encode_ordinary(TEXT)]
    assert 17 < len(tokens) < 33
    first, _ = log_probabilities(params, tokens[:17])
    last, _ = log_probabilities(params, tokens[-17:])
    wanted = first.sum() + last[-(len(tokens) - 17) :].sum()
    rolled, short, none = harness.loglikelihood_rolling([TEXT, "Tea", ""])
    assert rolled == pytest.approx(wanted, abs=1e-4)
    assert short == pytest.approx(harness.loglikelihood([("", "Tea")])[0][0], abs=1e-4)
    assert none == 0


def test_generation_ends_before_what_it_is_told(harness):
    ask = dict(max_gen_toks=8)
    (whole,) = harness.generate_until([(TEXT, ask)])
    end = whole[len(whole) // 2 :][:2]
    assert harness.generate_until([(TEXT, ask | dict(until=end))]) == [whole[: whole.index(end)]]
    wild = ask | dict(do_sample=True, temperature=3.0)
    texts = [harness.generate_until([(TEXT, wild)]) for _ in range(2)]
    assert texts[0] == texts[1] != [whole]  # seeded
    del wild["do_sample"]  # a temperature is enough
    assert harness.generate_until([(TEXT, wild)]) == texts[0]
    for greedy in (
        dict(temperature=0.0),
        dict(do_sample=False, temperature=3.0),
        dict(do_sample=True, temperature=1e-6),
        dict(do_sample=True, temperature=3.0, top_k=1),
        dict(do_sample=True, temperature=3.0, top_p=1e-6),
    ):
        assert harness.generate_until([(TEXT, ask | greedy)]) == [whole]


@pytest.mark.parametrize("name", harness_module.COUNTS)
def test_options_that_change_nothing_are_taken(harness, name):
    (wanted,) = harness.generate_until([(TEXT, dict(max_gen_toks=3))])
    options = {"max_completion_tokens": 5, name: 3, "num_beams": 1}
    assert harness.generate_until([(TEXT, options)]) == [wanted]


def test_what_cannot_be_answered_is_refused(harness, monkeypatch):
    """Options that cannot be followed before any text is made."""
    with pytest.raises(BadInput, match=r"a continuation of 17 tokens .* the model takes 16"):
        harness.loglikelihood([("A", " a" * 17)])
    monkeypatch.setattr(harness, "_sample", None)
    with pytest.raises(BadInput, match="generation with num_beams is not supported; known are"):
        harness.generate_until([("A", {}), ("A", dict(num_beams=4))])


def test_a_model_with_another_vocabulary_answers_what_it_can(harness, monkeypatch):
    """A larger one: what the tokenizer does not have is replaced. A smaller one: refused."""
    few = SimpleNamespace(n_vocab=0, encode_ordinary=tokenizer().encode_ordinary)
    with monkeypatch.context() as patch:
        patch.setattr(harness_module, "tokenizer", lambda: few)
        assert harness.generate_until([("Tea", dict(max_gen_toks=3))]) == [3 * chr(0xFFFD)]
    monkeypatch.setattr(harness, "_V", 5)
    for ask, more in ((harness.loglikelihood, " is"), (harness.generate_until, {})):
        with pytest.raises(BadInput, match=r"the text has token \d+ of .* vocabulary ends at 4"):
            ask([("Tea", more)])


@pytest.mark.parametrize("words", [["--output_path=old/a.json"], ["-o", "old/a"], ["-o", "old"]])
def test_where_nothing_can_be_written_nothing_is_evaluated(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").touch()
    (tmp_path / "a.json").touch()
    flag, _, _ = words[0].partition("=")
    with pytest.raises(BadInput, match=f"^{flag}: old.* cannot be (made|written): Not a directory"):
        lm_eval.refuse_output(["--tasks", "x", *words])
    lm_eval.refuse_output(["-o", "a.json", "--output_path=new/folder", "--tasks"])


def test_without_lm_eval_there_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    monkeypatch.setattr(sys, "argv", ["lm_eval", "--tasks", "x"])
    assert program.ended(lm_eval.main) == 2
    assert "lm_eval is not installed" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["lm_eval", "--help"])
    assert lm_eval.main() == 0
    help = capsys.readouterr().out
    assert "--model_args run=runs/books" in help and "pip install -e .[lm_eval]" in help


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(dtype="foo"), "dtype=foo must be one of auto, float32, bfloat16"),
        (dict(dtype=16), "dtype=16 must be one of"),
        (dict(step="last"), "step=last must be a whole number"),
        (dict(sequence_length=1.5), "sequence_length=1.5 must be a whole number"),
        (dict(sequence_length=17), "sequence_length=17 must be from 2 to 16"),
        (dict(ops_spec=7), "--ops=7: no op has an implementation '7'"),
        (dict(batch_size="0"), "--batch_size=0 must be at least 1, or auto"),
        (dict(model="", run=2024), "--run=2024 is no directory"),
    ],
)
def test_arguments_that_cannot_be_are_refused(params, tmp_path, monkeypatch, options, message):
    """The harness makes numbers of words that look like some."""
    monkeypatch.chdir(tmp_path)
    llmc.write_model(tmp_path / "model.bin", MODEL, params)
    usual = dict(run="", model="model.bin", step=-1, sequence_length=-1, dtype="auto")
    with pytest.raises(BadInput, match=message):
        lm_eval.open_harness(**(usual | dict(ops_spec="auto", batch_size=8) | options))


TASK = """
task: tea
dataset_path: json
dataset_kwargs:
  data_files: {file}
output_type: multiple_choice
test_split: train
doc_to_text: "{{{{ctx}}}}"
doc_to_choice: "{{{{endings}}}}"
doc_to_target: "{{{{label}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""


def test_lm_eval_runs_a_task_of_its_own(params, harness, tmp_path, monkeypatch):
    """From its command line, on a model file; what it counts is what the harness answers."""
    pytest.importorskip("lm_eval")
    items = [
        dict(ctx="The tea", endings=[" is hot", " is a kettle"], label=0),
        dict(ctx="The kettle", endings=[" boils", " sings in the old choir"], label=1),
    ]
    (tmp_path / "tea.json").write_text("\n".join(map(json.dumps, items)))
    (tmp_path / "tea.yaml").write_text(TASK.format(file=tmp_path / "tea.json"))
    llmc.write_model(tmp_path / "model.bin", MODEL, params)
    monkeypatch.setenv("HF_HOME", f"{tmp_path}/cache")
    words = f"--model_args model={tmp_path}/model.bin --tasks tea --include_path {tmp_path} "
    words += f"--batch_size 2 --output_path {tmp_path}/out --log_samples"
    monkeypatch.setattr(sys, "argv", ["lm_eval", *words.split()])
    assert lm_eval.main() == 0
    (results,) = (tmp_path / "out").rglob("results_*.json")
    right = 0
    for item in items:
        answers = harness.loglikelihood([(item["ctx"], ending) for ending in item["endings"]])
        right += np.argmax([answer[0] for answer in answers]) == item["label"]
    assert json.loads(results.read_text())["results"]["tea"]["acc,none"] == right / 2
