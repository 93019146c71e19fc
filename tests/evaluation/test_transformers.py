"""A fixed set of questions, on random weights: the losses and choices are those of PyTorch's model.

The other side is llm.c's scripts in short: one question at a time, transformers' GPT-2, the loss
of each ending's tokens.
"""

import csv
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from llmc_jax import evaluate
from llmc_jax.config import ModelConfig
from llmc_jax.data.tokenizer import EOT, tokenizer
from llmc_jax.interop import huggingface
from llmc_jax.models import gpt2

HERE = Path(__file__).parent
MODEL = ModelConfig(L=2, NH=3, C=48, maxT=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of Hugging Face with random weights, large enough that endings differ clearly."""
    folder = tmp_path_factory.mktemp("model")
    rng = np.random.default_rng(0)
    shapes = gpt2.shapes(MODEL)
    params = jax.tree.map(lambda s: (0.2 * rng.normal(size=s.shape)).astype(np.float32), shapes)
    params.wte[MODEL.V :] = 0
    huggingface.write_model(folder / "model", MODEL, params)
    return folder


def test_losses_and_choices_are_those_of_torch(folder):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    output = folder / "ours.json"
    evaluate.main(
        evaluate.EvaluateConfig(
            model=f"hf:{folder}/model", tasks="hellaswag,mmlu", output=f"{output}", details=True,
            hellaswag=f"{HERE}/questions.jsonl", mmlu=f"{HERE}/questions.csv", batch_size=6,
        )
    )  # fmt: skip
    tasks = json.loads(output.read_text())["tasks"]
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder / "model").eval()

    def loss_of(context, ending):
        before = tokenizer().encode(context) or [EOT]
        tokens = torch.tensor(before + tokenizer().encode(" " + ending))
        with torch.no_grad():
            logits = theirs(tokens[None]).logits[0, len(before) - 1 : -1]
        return torch.nn.functional.cross_entropy(logits, tokens[len(before) :], reduction="none")

    items = [json.loads(line) for line in (HERE / "questions.jsonl").read_text().splitlines()]
    asked = dict(hellaswag=[(i["ctx"], i["endings"], int(i["label"])) for i in items])
    with open(HERE / "questions.csv", newline="") as file:
        asked["mmlu"] = [
            (f"Question: {row[0]}\n\nAnswer:", row[1:5], "ABCD".index(row[5]))
            for row in csv.reader(file)
        ]
    for task, questions in asked.items():
        right = 0
        for (context, endings, label), ours in zip(questions, tasks[task]["details"], strict=True):
            losses = [loss_of(context, ending) for ending in endings]
            sums, means = [float(x.sum()) for x in losses], [float(x.mean()) for x in losses]
            np.testing.assert_allclose(ours["sums"], sums, atol=1e-4)
            np.testing.assert_allclose(ours["means"], means, atol=1e-4)
            assert ours["choice"] == np.argmin(sums) and ours["choice_norm"] == np.argmin(means)
            assert ours["label"] == label
            right += np.argmin(means) == label
        assert tasks[task]["acc_norm"] == right / len(questions)
