"""A progress bar on a terminal, and a plain line now and then in a log file."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Self, TextIO

import jax
from tqdm import tqdm

_GONE = (OSError, ValueError)
"""What writing raises to a pipe without a reader, and to a closed file."""


class Progress:
    """Shows step, loss, rate and time left of one run, on the first process only.

        with Progress(1000, start=200, description="signed: iteration 2") as progress:
            progress.update(210, {"train/loss": 0.3})

    Where the stream is no terminal, a bar would fill the log with carriage returns: a line is
    written every `interval` seconds instead, and one at the end. A stream whose reader is gone, or
    that is closed, is written to no more: the run goes on.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        description: str = "",
        unit: str = "step",
        enabled: bool = True,
        heading: str | None = None,
        interval: float = 10.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin at step `start` of `total`; the stream is standard error unless given.

        `unit` is what a step is called; `heading` is a first line.
        """
        self._total, self._start, self._step = total, start, start
        self._prefix = f"{description}: " if description else ""
        self._unit = unit
        self._stream = sys.stderr if stream is None else stream
        self._interval, self._clock = interval, clock
        self._began = self._written = clock()
        self._written_step = start
        self._loss = ""
        self._bar: tqdm | None = None
        # Standard error is None where it was closed before the start.
        self._enabled = enabled and jax.process_index() == 0 and self._stream is not None
        if not self._enabled:
            return
        try:
            if heading is not None:
                print(self._prefix + heading, file=self._stream, flush=True)
            if self._stream.isatty():
                self._bar = tqdm(
                    total=total,
                    initial=start,
                    desc=description or None,
                    unit=unit,
                    dynamic_ncols=True,
                    file=self._stream,
                )
        except _GONE:
            self._silence()

    def _silence(self) -> None:
        self._enabled = False
        if self._bar is not None:
            self._bar.disable = True  # else it would try again when it is deleted

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._enabled:
            return
        try:
            if self._bar is not None:
                self._bar.close()
            elif self._step > self._written_step:
                self._write_line()
        except _GONE:
            self._silence()

    def update(self, step: int, scalars: Mapping[str, float]) -> None:
        """Show that `step` steps are done, and "train/loss" where `scalars` has it."""
        if not self._enabled:
            return
        if "train/loss" in scalars:
            self._loss = f"loss {scalars['train/loss']:.3g}"
        before, self._step = self._step, step
        try:
            if self._bar is not None:
                self._bar.set_postfix_str(self._loss, refresh=False)
                self._bar.update(step - before)
            elif self._clock() - self._written >= self._interval:
                self._write_line()
        except _GONE:
            self._silence()

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
        print(self._prefix + ", ".join(filter(None, parts)), file=self._stream, flush=True)
