"""llm.c's command lines as flagfiles."""

import sys
from pathlib import Path

import pytest

from llmc_jax import llmc_flags
from llmc_jax.config import BadInput

# The options of llm.c's scripts/run_gpt2_124M.sh and, where they say more, of the others.
SCRIPT_124M = (
    "mpirun -np 8 ./train_gpt2cu -i dev/data/fineweb10B/fineweb_train_*.bin "
    "-j dev/data/fineweb10B/fineweb_val_*.bin -o log_gpt2_124M -v 250 -s 20000 -g 144 -h 1 "
    "-b 64 -t 1024 -d 524288 -r 0 -z 1 -c 0.1 -l 0.0006 -q 0.0 -u 700 -n 5000 -y 1 -e d12"
)
SCRIPT_350M = (
    "mpirun -np 8 bash -c",
    "\n ./train_gpt2cu -i 'train_*.bin' -l 0.0003 -x 60000 -e d24 -pn 8 -pr $OMPI_COMM_WORLD_RANK",
)
SCRIPT_GPT3 = "train_gpt2cu -k cosine -n 10000 -nk 5 -nm 50000 -ge 1 -sl 7.0 -sg 7.0 -e gpt3:c768"


def test_a_script_of_llm_c():
    options, remarks = llmc_flags.convert(SCRIPT_124M.split())
    assert options == dict(
        train_data="dev/data/fineweb10B/fineweb_train_*.bin",
        val_data="dev/data/fineweb10B/fineweb_val_*.bin",
        output_dir="log_gpt2_124M", val_every="250", sample_every="20000", sample_tokens="144",
        batch_size="64", sequence_length="1024", total_batch_size="524288", recompute="0",
        weight_decay="0.1", learning_rate="0.0006", final_lr_fraction="0.0", warmup_steps="700",
        checkpoint_every="5000", resume="true", model="d12", dtype="bfloat16",
        shuffle_order="llmc", hellaswag="dev/data/hellaswag/hellaswag_val.bin", zero_stage="1",
    )  # fmt: skip
    assert remarks == []
    assert llmc_flags.convert(["-h", "0"])[0]["hellaswag"] == ""


def test_a_script_within_a_shell_within_mpirun():
    options, remarks = llmc_flags.convert([*SCRIPT_350M[0].split(), SCRIPT_350M[1]])
    assert options["model"] == "d24" and options["max_steps"] == "60000"
    assert len(remarks) == 2
    options, _ = llmc_flags.convert(["-o", "the run's"])  # an apostrophe is not a shell's quote
    assert options["output_dir"] == "the run's"


def test_letters_without_counterpart_are_named_with_the_reason():
    options, remarks = llmc_flags.convert(SCRIPT_GPT3.split())
    assert options["model"] == "gpt3:c768" and options["lr_schedule"] == "cosine"
    assert options["keep_checkpoints"] == "5" and options["major_checkpoint_every"] == "50000"
    assert options["skip_loss_zscore"] == options["skip_grad_zscore"] == "7.0"
    assert [remark.split(":")[0] for remark in remarks] == ["-ge 1"]


def test_every_letter_of_llm_c_is_known():
    llmc = "i j e o lg n nk nm y b t d x k l u q c sl sg v m s g h a f w ge z r pn pr pg pi ps pf"
    known = {*llmc_flags.letters(), *llmc_flags.NO_COUNTERPART}
    assert known == {f"-{letter}" for letter in llmc.split()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-Q 1", "'-Q' is no flag of llm.c's"),
        ("-b", "-b has no value"),
        ("-b four", "-b four: a number is needed"),
        ("-k sine", "-k sine: it must be one of cosine, linear"),
        ("./train_gpt2fp32cu -b 4 -o log.txt", "fp32cu is a program of its own, .*-o is a log fi"),
        ("train_gpt2_fp32cu", "give train's flags, with --dtype=float32"),
    ],
)
def test_what_llm_c_does_not_know_is_refused(words, message):
    with pytest.raises(BadInput, match=message):
        llmc_flags.convert(words.split())


def test_what_it_does_is_printed(monkeypatch, capsys):
    """Where that is asked for it is no mistake."""
    monkeypatch.setattr(sys, "argv", ["llmc_flags", "--help"])
    assert llmc_flags.main() == 0
    told = capsys.readouterr().out
    assert told.startswith("Print the flagfile") and "> run.flags" in told
    monkeypatch.setattr(sys, "argv", ["llmc_flags"])
    assert llmc_flags.main() == 2 and capsys.readouterr().err == told


def test_the_printed_flagfile_is_one_that_training_takes(run_program, tmp_path):
    """It stops at the data, which are not there, and not before."""
    printed = run_program("llmc_flags", "--", *SCRIPT_124M.split()[4:])
    assert printed.returncode == 0 and "--zero_stage=1" in printed.stdout
    (tmp_path / "run.flags").write_text(printed.stdout)
    trained = run_program("train", f"--flagfile={tmp_path}/run.flags")
    assert trained.returncode == 2
    assert "--train_data=dev/data/fineweb10B/fineweb_train_*.bin matches no file" in trained.stderr


CONFIGS = Path(__file__).parent.parent / "configs"


def read_flagfile(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line.startswith("--")]
    return dict(line.removeprefix("--").split("=", 1) for line in lines)


def test_our_124m_run_has_llm_cs_hyper_parameters():
    ours = read_flagfile(CONFIGS / "gpt2_124M.flags")
    llmc, _ = llmc_flags.convert(SCRIPT_124M.split())
    places = {name: llmc.pop(name).removeprefix("dev/") for name in ("train_data", "val_data")}
    assert {name: ours.pop(name) for name in places} == places  # where prepare puts the same files
    assert {name: llmc[name] for name in ours} == ours | dict(output_dir="log_gpt2_124M")
    assert llmc.keys() - ours.keys() == {"shuffle_order", "hellaswag"}


@pytest.mark.parametrize("name", ["gpt2_124M", "gpt2_350M", "gpt2_774M", "gpt2_1558M", "gpt3_125M"])
def test_the_flagfile_of_each_run_is_taken(run_program, name, tmp_path, monkeypatch):
    """It stops at the data, which are not there, and not before."""
    monkeypatch.chdir(tmp_path)
    result = run_program("train", f"--flagfile={CONFIGS}/{name}.flags")
    assert result.returncode == 2 and "matches no file" in result.stderr, result.stderr
