"""Tests of reading a run's files for the report: missing and damaged files leave gaps."""

import json

from gdistill.evaluation.report import files
from gdistill.workdir import storage


def test_a_round_needs_a_card_or_a_log(tmp_path):
  storage.write_json(tmp_path / '00_teacher' / 'card.json', {'num_steps': 256})
  half = json.dumps({'step': 1, 'loss': 2.0}) + '\n[1]\n{"st'
  storage.write_bytes(tmp_path / '01_guidance' / 'metrics.jsonl', half.encode())
  storage.write_bytes(tmp_path / '02_progressive_4' / 'card.json', b'{')
  storage.write_json(tmp_path / 'card.json', {})
  assert files.rounds(storage.path(tmp_path)) == [
    {'name': '00_teacher', 'card': {'num_steps': 256}, 'log': []},
    {'name': '01_guidance', 'card': {}, 'log': [{'step': 1, 'loss': 2.0}]},
  ]


def test_a_damaged_file_counts_as_a_missing_one(tmp_path):
  (tmp_path / 'half.json').write_text('{"a": 1')
  (tmp_path / 'whole.json').write_text('{"a": 1}')
  folder = storage.path(tmp_path)
  assert files.json_or_none(folder / 'none.json') is None
  assert files.json_or_none(folder / 'half.json') is None
  assert files.json_or_none(folder / 'whole.json') == {'a': 1}
  (tmp_path / 'metrics.jsonl').write_bytes(b'\xff\xfe')
  assert files.log_entries(folder / 'metrics.jsonl') == []
