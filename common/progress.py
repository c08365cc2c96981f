"""A progress bar on a terminal, and a plain line now and then in a log file."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Self, TextIO

import jax
from tqdm import tqdm


class Progress:
    """Shows step, loss, rate and time left of one run, on the first process only.

        with Progress(1000, start=200, description="signed: iteration 2") as progress:
            progress.update(210, {"train/loss": 0.3})

    Where the stream is no terminal, a bar would fill the log with carriage returns: a line is
    written every `interval` seconds instead, and one at the end.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        description: str = "",
        unit: str = "step",
        enabled: bool = True,
        interval: float = 10.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin at step `start` of `total`; the stream is standard error unless given.

        `unit` is what a step is called.
        """
        self._total, self._start, self._step = total, start, start
        self._description, self._unit = description, unit
        self._stream = sys.stderr if stream is None else stream
        self._interval, self._clock = interval, clock
        self._began = self._written = clock()
        self._written_step = start
        self._loss = ""
        self._bar: tqdm | None = None
        self._enabled = enabled and jax.process_index() == 0
        if self._enabled and self._stream.isatty():
            self._bar = tqdm(
                total=total,
                initial=start,
                desc=description or None,
                unit=unit,
                dynamic_ncols=True,
                file=self._stream,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._enabled and self._step > self._written_step:
            self._write_line()

    def update(self, step: int, scalars: Mapping[str, float]) -> None:
        """Show that `step` steps are done, and "train/loss" where `scalars` has it."""
        if not self._enabled:
            return
        if "train/loss" in scalars:
            self._loss = f"loss {scalars['train/loss']:.3g}"
        if self._bar is not None:
            self._bar.set_postfix_str(self._loss, refresh=False)
            self._bar.update(step - self._step)
        self._step = step
        if self._bar is None and self._clock() - self._written >= self._interval:
            self._write_line()

    def _write_line(self) -> None:
        self._written, self._written_step = self._clock(), self._step
        elapsed = self._written - self._began
        rate = (self._step - self._start) / elapsed if elapsed > 0 else 0.0
        parts = [
            f"{self._unit} {self._step}/{self._total}",
            f"{self._step / self._total:.0%}",
            self._loss,
            f"{rate:.4g} {self._unit}s/s" if rate else "",
            f"{tqdm.format_interval((self._total - self._step) / rate)} left" if rate else "",
        ]
        prefix = f"{self._description}: " if self._description else ""
        print(prefix + ", ".join(filter(None, parts)), file=self._stream, flush=True)
