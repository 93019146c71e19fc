"""What a user sees while a run goes on: a bar on a terminal, plain lines elsewhere."""

import sys
import time

from tqdm import tqdm

from llmc_jax.training.step import Metrics

LINE_EVERY_S = 5  # plain lines at most this often
SMOOTHING = 0.95  # of tokens/s, as in llm.c


class Progress:
    """Shows the steps of a run from `start` to `total`."""

    def __init__(self, start: int, total: int):
        self._total = total
        self._rate = None
        self._last_line = -float("inf")
        self._bar = None
        if sys.stdout.isatty():
            self._bar = tqdm(
                total=total, initial=start, file=sys.stdout, unit="step", dynamic_ncols=True
            )

    def step(self, step: int, metrics: Metrics, step_time_s: float, step_tokens: int) -> None:
        """Show update number `step` (0-based); metrics as Python floats."""
        rate = step_tokens / step_time_s
        before = rate if self._rate is None else self._rate
        self._rate = SMOOTHING * before + (1 - SMOOTHING) * rate
        if self._bar is not None:
            text = f"loss {metrics.loss:.3f}, {self._rate:,.0f} tok/s"
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update()
        elif time.monotonic() - self._last_line >= LINE_EVERY_S or step + 1 == self._total:
            self._last_line = time.monotonic()
            print(
                f"step {step + 1:4d}/{self._total} | loss {metrics.loss:7.6f} | "
                f"norm {metrics.grad_norm:6.4f} | lr {metrics.learning_rate:.2e} | "
                f"{1000 * step_time_s:.2f} ms | {self._rate:.0f} tok/s",
                flush=True,
            )

    def message(self, text: str) -> None:
        """Print a line of its own."""
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
