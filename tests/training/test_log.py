"""Tests of a round's metrics file and event files, over several starts of the run."""

import json

from gdistill.training import log as training_log
from gdistill.workdir import storage


def rows(folder):
  return [json.loads(line) for line in storage.read_text(folder / 'metrics.jsonl').splitlines()]


def test_a_start_from_a_checkpoint_drops_the_later_rows_and_damaged_rows(tmp_path):
  folder = storage.path(tmp_path)
  lines = ['{"step": 3, "loss": 1.0}', '{"step": 6', '[6]', '{"step": 6, "loss": 0.5}']
  lines.append('{"step": 9, "loss": 7.0}')
  storage.write_bytes(folder / 'metrics.jsonl', '\n'.join(lines).encode())
  log = training_log.Log(folder, 6)
  log.add(9, {'loss': 0.25})
  log.flush()
  assert rows(folder) == [
    {'step': 3, 'loss': 1.0}, {'step': 6, 'loss': 0.5}, {'step': 9, 'loss': 0.25},
  ]  # fmt: skip


def test_every_start_writes_an_event_file_of_its_own(tmp_path):
  folder = storage.path(tmp_path)
  for step in (0, 3):
    log = training_log.Log(folder, step)
    log.flush()  # without a new row, nothing is written
    assert len(storage.list_dir(folder / 'events')) == step // 3
    log.add(step + 3, {'loss': 1.0})
    log.flush()
  names = storage.list_dir(folder / 'events')
  assert sorted(name[-8:] for name in names) == ['00000000', '00000003']
  assert [row['step'] for row in rows(folder)] == [3, 6]
