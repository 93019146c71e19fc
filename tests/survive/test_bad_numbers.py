"""Losses and norms that are not finite."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from llmc_jax import program, train
from llmc_jax.config import RunStopped
from tests.survive.runs import interrupt_at, log, run_of, steps


@pytest.fixture
def poison(monkeypatch):
    """A function: the losses of these steps become NaN, in what the run sees of its steps."""

    def poison(bad_steps):
        def prepare(step, *args):
            compiled = real(step, *args)
            count = itertools.count()

            def update(state, rooms, inputs, targets):
                if next(count) in bad_steps:
                    kept = jax.tree.map(np.array, state)
                    broken = jax.tree.map(lambda x: x * np.float32(np.nan), state.params)
                    state, rooms, metrics = compiled(
                        state._replace(params=broken), rooms, inputs, targets
                    )
                    state = jax.device_put(kept._replace(step=kept.step + 1), state.step.sharding)
                    return state, rooms, metrics
                return compiled(state, rooms, inputs, targets)

            return update

        real = train.compile_update
        monkeypatch.setattr(train, "compile_update", prepare)

    return poison


def test_bad_steps_are_skipped_counted_and_logged(cfg, poison, capsys):
    poison({3})
    train.main(dataclasses.replace(cfg, checkpoint_every=0, val_every=0))
    screen = capsys.readouterr().out
    assert "step    4 skipped: loss nan (+nanz), norm nan (+nanz)" in screen
    assert "1 steps were skipped: metrics.jsonl says which" in screen
    assert [m["step"] for m in log(cfg) if m.get("skipped")] == [3]
    assert np.isfinite(log(cfg)[-1]["train_loss"])
    line = run_of(cfg).metrics.read_text().splitlines()[3]
    assert '"train_loss": null, "grad_norm": null,' in line  # NaN is no JSON
    assert np.isnan(log(cfg)[3]["train_loss"])


def test_too_many_bad_steps_stop_the_run_and_leave_the_good_checkpoint(cfg, poison):
    poison(range(2, 99))
    with pytest.raises(RunStopped, match=r"not finite in 3 steps in a row .*=3\).* of step 2, is"):
        train.main(dataclasses.replace(cfg, max_bad_steps=3, max_steps=20))
    assert steps(cfg) == [2]
    assert [m["step"] for m in log(cfg) if m.get("skipped")] == [2, 3, 4]


def test_a_run_whose_last_steps_are_bad_has_failed(cfg, poison):
    poison(range(4, 99))
    with pytest.raises(RunStopped, match=r"not finite in the last 2 steps; .* of step 4, is from"):
        train.main(dataclasses.replace(cfg, max_bad_steps=0))
    assert steps(cfg) == [2, 4]


def test_a_signal_while_numbers_are_bad_is_a_failure(cfg, poison, monkeypatch):
    """Steps were finished, and nothing of them is saved: not status 0, nor to be begun again."""
    poison(range(1, 99))
    interrupt_at(monkeypatch, 2)
    with pytest.raises(
        RunStopped, match=r"not finite in the last 2 steps; there is no checkpoint:"
    ):
        train.main(dataclasses.replace(cfg, max_bad_steps=0))
    assert steps(cfg) == []


def test_a_checkpoint_waits_until_numbers_are_good_again(cfg, poison, capsys):
    poison({2, 3})
    train.main(cfg)
    assert steps(cfg) == [2, 5, 6]
    assert "no checkpoint at step 4: the numbers of the last step" in capsys.readouterr().out


def test_a_stopped_run_has_exit_status_1(monkeypatch, capsys):
    """And no traceback; absl calls what it is given to start."""
    monkeypatch.setattr(program.app, "run", lambda start, flags_parser: start(["program"]))
    monkeypatch.setattr(program, "define_flags", lambda *_: None)
    monkeypatch.setattr(program.screen, "protect", lambda: None)

    def main(_):
        raise RunStopped("it is over.")

    with pytest.raises(SystemExit) as ended:
        program.run(main, dataclasses.make_dataclass("Empty", []))
    assert ended.value.code == 1 and capsys.readouterr().err == "error: it is over.\n"
