"""The seconds that a process spends, summed up by the name of the work."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator


@dataclasses.dataclass
class Seconds:
  """Sums of seconds by name: `with seconds('save'): ...` adds the time of the block to 'save'."""

  spent: dict[str, float] = dataclasses.field(default_factory=dict)

  @contextlib.contextmanager
  def __call__(self, name: str) -> Iterator[None]:
    """Adds the time of the block to spent[name], also if the block raises."""
    start = time.monotonic()
    try:
      yield
    finally:
      self.spent[name] = self.spent.get(name, 0.0) + time.monotonic() - start
