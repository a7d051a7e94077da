"""Seconds that a process spends on each kind of work, summed up in WORKDIR/time.json."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator

from gdistill.process import progress
from gdistill.workdir import storage


@dataclasses.dataclass
class Seconds:
  """A clock for each kind of work: `with seconds('save'): ...` adds the time of a save to
  `spent['save']`.
  """

  spent: dict[str, float] = dataclasses.field(default_factory=dict)

  @contextlib.contextmanager
  def __call__(self, name: str) -> Iterator[None]:
    """Adds the time of the `with` block to spent[name], also if the block raises."""
    start = time.monotonic()
    try:
      yield
    finally:
      self.spent[name] = self.spent.get(name, 0.0) + time.monotonic() - start


def account(workdir: storage.epath.Path, seconds: Seconds, write: bool) -> None:
  """Prints the seconds that this process spent on each kind of work; with `write`, also adds the
  seconds to WORKDIR/time.json.
  """
  file = storage.path(workdir) / 'time.json'
  if write:
    before = storage.read_json(file) if storage.exists(file) else {}
    total = {k: v for k, v in dict(before).items() if isinstance(v, (int, float))}
    for name, spent in seconds.spent.items():
      total[name] = round(total.get(name, 0.0) + spent, 3)
    storage.write_json(file, total)
  progress.say('seconds: ' + ', '.join(f'{k} {v:.1f}' for k, v in seconds.spent.items()))
