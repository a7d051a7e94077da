"""Writes the training metrics of a round as JSON lines and TensorBoard events."""

import json
import struct
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
  """Returns the bytes of a TensorBoard event file: records of length, checksum, event, checksum.

  tensorboardX makes the events and the checksums. Its writer is not used, because that writer needs
  a local disk: a workdir may be in an object store, on a machine without temporary folders.
  """
  from tensorboardX import record_writer
  from tensorboardX import summary
  from tensorboardX.proto import event_pb2

  now = time.time()
  events = [event_pb2.Event(wall_time=now, file_version='brain.Event:2')]
  for step, row in rows:
    for name, value in row.items():
      scalar = summary.scalar(name, float(value))
      events.append(event_pb2.Event(wall_time=now, step=step, summary=scalar))
  found = bytearray()
  for data in (e.SerializeToString() for e in events):
    length = struct.pack('<Q', len(data))
    for part in (length, data):
      found += part + struct.pack('<I', record_writer.masked_crc32c(part))
  return bytes(found)
