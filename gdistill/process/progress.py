"""Progress of a long command on stderr: a live bar in a terminal, plain lines elsewhere."""

import datetime
import sys
import time

import tqdm


class Progress:
  """A progress display: `with Progress('teacher', 1500) as p: p.update(n, loss=0.1)`."""

  def __init__(self, name: str, total: int, start: int = 0, seconds_between_lines: float = 10.0):
    self._name, self._total, self._start, self._done = name, total, start, start
    self._began = self._said = time.monotonic()
    self._between = seconds_between_lines
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm.tqdm(total=total, initial=start, desc=name, dynamic_ncols=True)

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *exc) -> None:
    if self._bar is not None:
      self._bar.close()

  def update(self, done: int, **numbers: float) -> None:
    """Shows that `done` of `total` units of work are finished, with `numbers` such as the loss
    beside the count.
    """
    text = ' '.join(f'{k}={v:.4g}' for k, v in numbers.items())
    if self._bar is not None:
      if text:
        self._bar.set_postfix_str(text, refresh=False)
      self._bar.update(done - self._done)
    elif time.monotonic() - self._said > self._between or done == self._total:
      self._said = time.monotonic()
      words = [f'{self._name}: {done}/{self._total}', text, self._left(done)]
      print(' '.join(word for word in words if word), file=sys.stderr, flush=True)
    self._done = done

  def _left(self, done: int) -> str:
    """Returns the remaining time as '1:02:03 left', estimated from the speed so far; returns ''
    before the first and after the last unit of work.
    """
    if not self._start < done < self._total:
      return ''
    elapsed = time.monotonic() - self._began
    seconds = elapsed / (done - self._start) * (self._total - done)
    return f'{datetime.timedelta(seconds=round(seconds))} left'


def say(text: str) -> None:
  """Prints one line to stderr without breaking a running bar."""
  tqdm.tqdm.write(text, file=sys.stderr)
