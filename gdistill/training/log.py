"""Writes the training metrics of a round as JSON lines and TensorBoard events."""

import json
import pathlib
import tempfile
import time

import jax
import numpy as np

from gdistill.workdir import storage


class Log:
  """The metrics of a round; `flush` rewrites the files, because object stores cannot append."""

  def __init__(self, folder: storage.epath.Path, step: int):
    self._file = folder / 'metrics.jsonl'
    self._events = folder / 'events'
    self._lines = []
    if storage.exists(self._file):
      lines = storage.read_text(self._file).splitlines()
      self._lines = [a for a in lines if _step_of(a) <= step]
    self._new: list[tuple[int, dict]] = []
    self._name = f'events.out.tfevents.{int(time.time())}.{step:08d}'

  def add(self, step: int, row: dict) -> None:
    """Adds the metrics of one training step; does nothing in processes other than process 0."""
    if jax.process_index() == 0:
      self._lines.append(json.dumps(storage.jsonable({'step': step, **row})))
      self._new.append((step, row))

  def flush(self) -> None:
    """Writes metrics.jsonl, and a TensorBoard file of the metrics since the process started."""
    if not self._new:
      return
    storage.write_bytes(self._file, ('\n'.join(self._lines) + '\n').encode())
    storage.write_bytes(self._events / self._name, _tensorboard(self._new))


def _step_of(line: str) -> int:
  """Returns the training step in a line of metrics.jsonl; the largest int64 if damaged."""
  try:
    return int(json.loads(line)['step'])
  except (ValueError, KeyError, TypeError):
    return np.iinfo(np.int64).max


def _tensorboard(rows: list[tuple[int, dict]]) -> bytes:
  """Returns the bytes of a TensorBoard event file, written to a temporary folder first.

  The temporary folder is needed because tensorboardX writes to local disks only, and a workdir may
  be in an object store.
  """
  import tensorboardX

  with tempfile.TemporaryDirectory() as folder:
    with tensorboardX.SummaryWriter(folder) as writer:
      for step, row in rows:
        for name, value in row.items():
          writer.add_scalar(name, value, step)
    return next(pathlib.Path(folder).glob('events*')).read_bytes()
