"""Where the time of a process goes."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator


@dataclasses.dataclass
class Seconds:
  """Where the time went: `with seconds('save'): ...`."""

  spent: dict[str, float] = dataclasses.field(default_factory=dict)

  @contextlib.contextmanager
  def __call__(self, name: str) -> Iterator[None]:
    start = time.monotonic()
    try:
      yield
    finally:
      self.spent[name] = self.spent.get(name, 0.0) + time.monotonic() - start
