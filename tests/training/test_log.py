"""Tests of a round's metrics file and event files, over several starts of the run."""

import json

import pytest

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


def test_event_files_equal_those_of_tensorboardx(tmp_path, monkeypatch):
  import tensorboardX

  monkeypatch.setattr('time.time', lambda: 1_700_000_000.5)
  log = training_log.Log(storage.path(tmp_path / 'round'), 0)
  with tensorboardX.SummaryWriter(str(tmp_path / 'expected')) as writer:
    for step, row in ((5, {'loss': 0.25, 'lr': 1e-3}), (6, {'loss': 1, 'kind/of it': 3.0})):
      log.add(step, row)
      for name, value in row.items():
        writer.add_scalar(name, value, step)
  log.flush()
  found, expected = (next(tmp_path.glob(at)) for at in ('round/events/*', 'expected/events*'))
  assert found.read_bytes() == expected.read_bytes()


def test_event_files_need_no_temporary_folder(tmp_path, monkeypatch):
  def refuse(*args, **kwargs):
    pytest.fail('a temporary folder was asked for')

  monkeypatch.setattr('tempfile.mkdtemp', refuse)
  log = training_log.Log(storage.path(tmp_path), 0)
  log.add(1, {'loss': 1.0})
  log.flush()
  assert storage.list_dir(tmp_path / 'events')
