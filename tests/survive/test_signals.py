"""Signals, and which checkpoints there are."""

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import types

import jax.numpy as jnp
import pytest

from llmc_jax import config, milestones, train
from llmc_jax.config import RunStopped
from llmc_jax.training import checkpoint, saver
from llmc_jax.training.checkpoint import Checkpointer
from llmc_jax.training.stop import Stop
from tests import tiny
from tests.survive.runs import interrupt_at, interrupt_validation, log, run_of, steps

ALL = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.fixture(autouse=True)
def hangup():
    """SIGHUP has its effect, also where the tests are run by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", ALL)
def test_a_signal_saves_and_the_run_goes_on_as_if_nothing_had_been(
    cfg, trained, monkeypatch, capfd, number
):
    """Step 3 is due for validation: the resumed run does it, once."""
    interrupt_at(monkeypatch, 2, number)
    train.main(cfg)
    name = signal.Signals(number).name
    out, err = capfd.readouterr()
    last = out.splitlines()[-1]
    assert f"{name}: stopping after this step; a second signal ends at once, without" in err
    assert err.endswith(("the steps since 0\n", "the steps since 2\n"))  # 2 is being written
    assert last == (
        f"stopped by {name} after step 3/6: checkpoint of step 3 saved; the same command with "
        f"--resume goes on"
    )
    assert steps(cfg) == [2, 3]
    monkeypatch.undo()
    monkeypatch.setitem(config.MODELS, "tiny", tiny.MODEL)
    train.main(dataclasses.replace(cfg, resume=True))
    assert log(cfg) == log(trained)


def test_a_run_that_went_back_goes_on_without_going_back(copied, trained, monkeypatch, capsys):
    """--resume_step in the same command would lose what was saved since."""
    back = dataclasses.replace(copied, resume_step=2)
    interrupt_at(monkeypatch, 0)
    train.main(back)
    told = "checkpoint of step 3 saved; the same command with --resume and without --resume_step g"
    assert told in capsys.readouterr().out
    train.main(copied)
    assert log(copied) == log(trained)
    with Checkpointer(run_of(copied).checkpoints) as checkpoints:
        keeper = saver.Saver(checkpoints, back, {}, 6, print)
        keeper.save(dict(a=jnp.zeros(4)), 6, 0)  # is there
        with pytest.raises(RunStopped, match="can be tried again with --resume and without --re"):
            keeper.finish()


def test_what_is_done_again_after_a_signal_is_logged_once(cfg, trained, monkeypatch):
    """The run that is to validate at step 3 is killed behind it, and validates there once more."""
    interrupt_at(monkeypatch, 2)
    train.main(cfg)
    cfg = dataclasses.replace(cfg, resume=True)
    monkeypatch.setattr(train, "train_batch", killed)
    with pytest.raises(RuntimeError, match="killed"):
        train.main(cfg)
    monkeypatch.undo()
    monkeypatch.setitem(config.MODELS, "tiny", tiny.MODEL)
    train.main(cfg)
    assert log(cfg) == log(trained)
    assert run_of(cfg).main_log.read_text() == run_of(trained).main_log.read_text()


def killed(*_):
    raise RuntimeError("killed")


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """The options of a run with validations of three batches at 0, 3 and 6; not to be changed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    cfg = tiny.config(**data, output_dir=str(folder), val_batches=-1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(config.MODELS, "tiny", tiny.MODEL)
        train.main(cfg)
    return cfg


@pytest.mark.parametrize(
    ("batch", "step", "saved"),
    [
        (2, 0, "no step was finished, so nothing is saved; the same command starts again"),
        (5, 3, "checkpoint of step 3 saved; the same command with --resume goes on"),
        (7, 6, "checkpoint of step 6 saved; the same command with --resume goes on"),
    ],
)
def test_a_signal_ends_a_validation_after_its_batch(
    undisturbed, tmp_path, monkeypatch, capsys, batch, step, saved
):
    """Which is left out of the logs, and made by the run that goes on."""
    cfg = dataclasses.replace(undisturbed, output_dir=f"{tmp_path}/run")
    batches = interrupt_validation(monkeypatch, batch)
    train.main(cfg)
    assert len(batches) == batch
    stopped = f"stopped by SIGTERM after step {step}/6: {saved}"
    assert capsys.readouterr().out.splitlines()[-1] == stopped
    assert [m["step"] for m in log(cfg) if "val_loss" in m] == list(range(0, step, 3))
    train.main(dataclasses.replace(cfg, resume=step > 0))
    assert log(cfg) == log(undisturbed)
    assert run_of(cfg).main_log.read_text() == run_of(undisturbed).main_log.read_text()


def test_a_signal_in_the_last_batch_makes_no_step_more(undisturbed, tmp_path, monkeypatch, capsys):
    """The validation is done and logged, and is not made again."""
    cfg = dataclasses.replace(undisturbed, output_dir=f"{tmp_path}/run")
    batches = interrupt_validation(monkeypatch, 6)
    train.main(cfg)
    assert "stopped by SIGTERM after step 3/6: checkpoint of" in capsys.readouterr().out
    assert log(cfg)[-1].keys() >= {"val_loss"}
    train.main(dataclasses.replace(cfg, resume=True))
    assert len(batches) == 9 and log(cfg) == log(undisturbed)


def test_a_signal_ends_what_is_due_before_the_next(undisturbed, tmp_path, monkeypatch, capsys):
    """Between a validation and a sample; the run that goes on makes both, and logs each once."""
    spoken = []
    monkeypatch.setattr(milestones, "EOT", 0)
    monkeypatch.setattr(milestones.Milestones, "_speak", lambda self, step, *_: spoken.append(step))
    output_dir = f"{tmp_path}/run"
    cfg = dataclasses.replace(undisturbed, output_dir=output_dir, sample_every=3)
    interrupt_validation(monkeypatch, 6)
    train.main(cfg)
    assert "stopped by SIGTERM after step 3/6: checkpoint of" in capsys.readouterr().out
    assert not spoken
    train.main(dataclasses.replace(cfg, resume=True))
    assert spoken == [3, 6] and log(cfg) == log(undisturbed)


@pytest.mark.parametrize("several", [False, True])
def test_a_signal_ends_a_sample_after_its_token(
    undisturbed, tmp_path, monkeypatch, capsys, several
):
    """Which the run that goes on makes; of several processes the others do not know of it, and all
    go on to where they look together."""

    def sample(params, prompt, count):
        for token in range(1, count + 1):
            if token == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            yield token

    monkeypatch.setattr(milestones, "make_sampler", lambda *_: sample)
    monkeypatch.setattr(milestones, "tokenizer", tiny.Letters)
    monkeypatch.setattr(milestones, "EOT", 0)
    here = types.SimpleNamespace(first=lambda: True, several=lambda: several)
    monkeypatch.setattr(milestones, "processes", here)
    output_dir = f"{tmp_path}/run"
    cfg = dataclasses.replace(undisturbed, output_dir=output_dir, sample_every=3, sample_tokens=9)
    train.main(cfg)
    screen = capsys.readouterr().out
    assert screen.count('sample at step 3:\n---\n"#$\n---') == several
    assert "stopped by SIGTERM after step 3/6: checkpoint of step 3 saved" in screen
    train.main(dataclasses.replace(cfg, resume=True, sample_tokens=3))  # it comes in the last token
    screen = capsys.readouterr().out
    assert screen.count('sample at step 3:\n---\n"#$\n---') == (not several)


def test_a_signal_without_an_output_directory_says_that_nothing_is_saved(cfg, monkeypatch, capfd):
    interrupt_at(monkeypatch, 1)
    train.main(dataclasses.replace(cfg, output_dir="", checkpoint_every=0))
    out, err = capfd.readouterr()
    assert out.endswith("after step 2/6: nothing is saved, because there is no --output_dir\n")
    assert err.endswith("SIGTERM: stopping after this step; a second signal ends at once\n")


def test_the_newest_checkpoint_is_the_last_that_is_on_disk(tmp_path, monkeypatch):
    """And not one that is being written, or cannot be: a second signal would cost its steps too."""
    with Checkpointer(tmp_path) as checkpoints:
        keeper = saver.Saver(checkpoints, tiny.config(schedule_steps=6), {}, 1, print)
        assert keeper.newest == 1
        state = dict(a=jnp.zeros(4))
        for step in (2, 3):
            keeper.save(state, step, 0)
            checkpoints.wait()
            assert keeper.newest == 2
            monkeypatch.setattr(checkpoint, "_claim_space", lambda *_: 1 / 0)


def test_a_second_signal_ends_the_process_at_once():
    """In a process of its own, because it must not be this one; nor is the first enough."""
    program = (
        "import os, signal\nfrom llmc_jax.training.stop import Stop\n"
        "with Stop(lambda: 7) as stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print(signal.Signals(stop.requested).name, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('still here', flush=True)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == -signal.SIGTERM and result.stdout == "SIGTERM\n"
    assert result.stderr == (
        "SIGTERM: stopping after this step; a second signal ends at once, without the steps since "
        "7\n"
    )


def test_a_closed_terminal_may_say_so_twice():
    """The system does, and then the shell."""
    with Stop() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.requested == signal.SIGHUP


def test_a_closed_terminal_is_no_signal_to_what_nohup_started():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.requested
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def started(*lines: str) -> subprocess.CompletedProcess:
    """A process in which `python -m llmc_jax.NAME` has begun to import, and then runs these."""
    # Ctrl-C as at a terminal: what a shell starts in the background ignores it.
    ctrl_c = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    imports = ("import gc, os, signal, sys, time", ctrl_c, "sys.argv = ['-m']", "import llmc_jax")
    lines = (*imports, *lines)
    command = [sys.executable, "-c", "\n".join(lines)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("number", ALL)
def test_a_signal_ends_a_program_that_imports(number):
    """Also where Python has no say, and behind what was printed."""
    result = started(
        "import ctypes, threading",
        "print('printed')",
        f"signal.pthread_sigmask(signal.SIG_BLOCK, [{number}])  # it does not end the sleep",
        f"threading.Timer(0.1, os.kill, (os.getpid(), {number})).start()",
        "ctypes.CDLL(None).sleep(60)",
        "print('not reached')",
    )
    assert result.returncode == 128 + number and result.stdout == "printed\n"
    assert result.stderr == (
        f"{signal.Signals(number).name} while the program starts: nothing is done yet; start it "
        f"again\n"
    )


@pytest.mark.parametrize("number", ALL[:2])
def test_nothing_is_left_of_a_start_that_a_signal_ends(cfg, trained, number):
    """Where a KeyboardInterrupt would go nowhere; the same command, without --resume, works."""
    result = started(
        "from llmc_jax import config, program, train",
        "from tests import tiny",
        "config.MODELS['tiny'] = tiny.MODEL",
        "def first_state(*_):",
        f"    os.kill(os.getpid(), {number})",
        "    while True:",
        "        try:",
        "            time.sleep(1)",
        "        except BaseException:",
        "            pass",
        "train.first_state = first_state",
        f"cfg = config.{cfg!r}",
        "start = lambda: train.main(cfg)",
        "sys.exit(program.ended(start, starting=train.STARTING))",
    )
    assert result.returncode == 128 + number
    assert result.stderr == f"{signal.Signals(number).name} {train.STARTING}\n"
    assert result.stdout.endswith("\ncache    off\n")
    train.main(cfg)
    assert log(cfg) == log(trained)


def test_other_programs_are_interrupted_in_pythons_way_once_they_have_begun():
    """And again, where that came in a callback whose exceptions go nowhere; however long Python is
    busy with that exception."""
    result = started(
        "import threading",
        "from llmc_jax import program",
        "start = threading.Thread.start",
        "threading.Thread.start = lambda self: (start(self), time.sleep(0.25))",
        "def callback(*_):",
        "    gc.callbacks.remove(callback)",
        "    os.kill(os.getpid(), signal.SIGINT)",
        "    time.sleep(1)",
        "def main():",
        "    try:",
        "        gc.callbacks.append(callback)",
        "        gc.collect()",
        "        print('goes on', flush=True)",
        "        time.sleep(60)",
        "    finally:",
        "        print('cleared away')",
        "sys.exit(program.ended(main))",
    )
    assert (result.returncode, result.stdout) == (130, "goes on\ncleared away\n")
    assert result.stderr == "interrupted\n"


def test_what_is_no_interruption_keeps_its_traceback():
    result = started("from llmc_jax import program", "program.ended(lambda: 1 / 0)")
    assert result.returncode == 1 and result.stderr.endswith("Error: division by zero\n")


def test_signals_have_their_own_effect_again_afterwards():
    before = signal.getsignal(signal.SIGINT)
    with Stop():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_the_newest_and_the_major_checkpoints_are_kept(cfg):
    train.main(
        dataclasses.replace(
            cfg, max_steps=11, checkpoint_every=2, keep_checkpoints=2, major_checkpoint_every=3
        )
    )
    assert steps(cfg) == [3, 6, 9, 10, 11]  # 2, 4 and 8 are gone; 11 is there for being the last


def test_checkpoints_by_the_clock(cfg, monkeypatch):
    """A minute passes every time the run looks at the clock: once a step, once a save."""
    now = itertools.count(0, 60)
    monkeypatch.setattr(saver, "time", types.SimpleNamespace(monotonic=lambda: next(now)))
    train.main(dataclasses.replace(cfg, checkpoint_every=0, checkpoint_minutes=1.5))
    assert steps(cfg) == [2, 4, 6]
