"""What a run does every so many steps beside saving: validation, HellaSwag, a sample."""

from collections.abc import Callable

from llmc_jax.batches import validate
from llmc_jax.data.tokenizer import EOT, token_bytes, tokenizer
from llmc_jax.generation.sampler import make_sampler
from llmc_jax.models import gpt2
from llmc_jax.run_setup import Setup
from llmc_jax.training import parallel, placement, processes
from llmc_jax.training.logger import Logger
from llmc_jax.training.resume import Start
from llmc_jax.training.step import TrainState


class _Asked(Exception):
    """A signal asks the run to stop."""


class Milestones:
    """Of a run that begins at `start`: when each is due, and the doing."""

    def __init__(self, setup: Setup, start: Start, logger: Logger, say: Callable[[str], None]):
        """say: where messages go."""
        self._setup, self._start, self._logger, self._say = setup, start, logger, say
        self._tokens = setup.cfg.total_batch_size
        self._evaluate = parallel.map_eval_step(setup.ops, setup.model, setup.cfg, setup.mesh)
        self._sample = make_sampler(setup.ops, setup.model, setup.cfg.dtype)
        self._sample_every = setup.cfg.sample_every
        if self._sample_every and setup.model.V <= EOT:
            self._sample_every = 0
            say(
                f"--sample_every={setup.cfg.sample_every}: no text is generated, for the model's "
                f"vocabulary of {setup.model.V:,} tokens is not GPT-2's"
            )

    def due(self, step: int) -> bool:
        """Whether there is anything to do before update `step`."""
        return self._validation_due(step) or self._sample_due(step)

    def reached(
        self, step: int, state: TrainState, asked: Callable[[], int], own: Callable[[], int]
    ) -> int:
        """Do what is due before update `step`, in llm.c's order; gives the signal for which some of
        it was left undone, or 0.

        asked: gives the signal that asks the run to stop, the same in all processes, or 0; own:
        that of this process. What is under way when there is one is left out of the logs.
        """

        def look() -> None:
            if signal := asked():
                raise _Asked(signal)

        try:
            if self._validation_due(step):
                self._validate(step, state, look)
                if self._setup.hellaswag and step > 0:
                    self._answer(step, state, look)
            if self._sample_due(step):
                look()
                self._speak(step, state, own)
        except _Asked as error:
            return error.args[0]
        return 0

    def _validation_due(self, step: int) -> bool:
        return self._is_due(self._setup.cfg.val_every, step)

    def _sample_due(self, step: int) -> bool:
        return step > 0 and self._is_due(self._sample_every, step)

    def _is_due(self, every: int, step: int) -> bool:
        """Whether what is done every so many steps and at the end is due."""
        done_before = step == self._start.step and self._start.loop_done
        last = step == self._setup.cfg.max_steps
        return every > 0 and (step % every == 0 or last) and not done_before

    def _validate(self, step: int, state: TrainState, look: Callable[[], None]) -> None:
        cfg = self._setup.cfg
        loss = validate(self._evaluate, state, self._setup.val_data, cfg, self._setup.mesh, look)
        self._logger.val(step, loss, self._tokens)
        self._say(f"step {step:4d}/{cfg.max_steps} | validation loss {loss:.6f}")

    def _answer(self, step: int, state: TrainState, look: Callable[[], None]) -> None:
        right = self._setup.hellaswag(self._params(state), look)
        self._logger.hellaswag(step, right.acc, right.acc_norm, self._tokens)
        self._say(f"step {step:4d}/{self._setup.cfg.max_steps} | HellaSwag {right.acc_norm:.4f}")

    def _speak(self, step: int, state: TrainState, own: Callable[[], int]) -> None:
        params = placement.own_copy(self._params(state))
        if not processes.first():
            return
        tokens = []
        for token in self._sample(params, [EOT], self._setup.cfg.sample_tokens):
            tokens.append(token)
            if (signal := own()) and len(tokens) < self._setup.cfg.sample_tokens:
                if not processes.several():
                    raise _Asked(signal)
                break  # the others are at what comes next, where all agree to stop
        parts = [token_bytes(tokenizer(), token) for token in tokens if token != EOT]
        text = b"".join(parts).decode(errors="replace")
        self._say(f"sample at step {step}:\n---\n{text}\n---")

    def _params(self, state: TrainState) -> gpt2.Params:
        return placement.whole_params(state.params, gpt2.shapes(self._setup.model))
