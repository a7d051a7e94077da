"""Tests of the table of figures: one table, or an error if protocols differ."""

import json

import pytest

from gdistill.cli import table


def write(path, *rows):
  path.write_text(json.dumps(rows[0] if len(rows) == 1 else rows))
  return str(path)


ROW = {'extractor': 'lite0', 'images': 50, 'sampler': 'ddim', 'num_steps': 4, 'w': 1.0, 'fd': 2.5}


def test_rows_of_all_files_stand_in_one_table(tmp_path, capsys):
  a = write(tmp_path / 'a.json', ROW, {**ROW, 'num_steps': 2, 'fd': 3.123456})
  b = write(tmp_path / 'b.json', {**ROW, 'sampler': 'dpm|solver', 'kid': None})
  assert table.main([a, b]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == '| file | sampler | num_steps | w | fd |' and len(lines) == 5
  assert lines[3] == f'| {a} | ddim | 2 | 1 | 3.123 |'
  assert lines[4] == f'| {b} | dpm\\|solver | 4 | 1 | 2.5 |'


def test_figures_of_different_protocols_are_refused_unless_asked_for(tmp_path, capsys):
  a, b = write(tmp_path / 'a.json', ROW), write(tmp_path / 'b.json', {**ROW, 'images': 40})
  assert table.main([a, b]) == 2
  assert 'images: 50 against 40' in capsys.readouterr().err
  assert table.main([a, b, '--mixed']) == 0
  assert 'images differs: 50; 40.' in capsys.readouterr().out


def test_distances_to_different_teachers_are_left_out(tmp_path, capsys):
  row = {**ROW, 'fd_teacher': 7.5, 'teacher_checkpoint': 'a', 'reference_steps': 64}
  a = write(tmp_path / 'a.json', row)
  b = write(tmp_path / 'b.json', {**row, 'teacher_checkpoint': 'b'})
  assert table.main([a, a]) == 0 and '7.5' in capsys.readouterr().out
  assert table.main([a, b]) == 0
  out = capsys.readouterr().out
  assert '7.5' not in out and 'fd_teacher is left out' in out


def test_real_images_alone_make_no_table(tmp_path, capsys):
  a = write(tmp_path / 'data.json', {**ROW, 'model': 'data'})
  assert table.main([a]) == 3 and 'of real images only' in capsys.readouterr().err


@pytest.mark.parametrize('text', ['', '[]', '{}', '[1]', '{"w": 1}', '{'])
def test_what_holds_no_figures_is_named(tmp_path, capsys, text):
  (tmp_path / 'a.json').write_text(text)
  assert table.main([str(tmp_path / 'a.json')]) == 3
  assert 'give the path of report/metrics.json' in capsys.readouterr().err
  assert table.main([str(tmp_path / 'b.json')]) == 3


def test_a_file_with_a_byte_order_mark_is_read_and_one_too_deep_is_one_line(tmp_path, capsys):
  a = write(tmp_path / 'a.json', ROW)
  (tmp_path / 'a.json').write_text(json.dumps(ROW), 'utf-8-sig')
  assert table.main([a]) == 0 and '| 2.5 |' in capsys.readouterr().out
  (tmp_path / 'a.json').write_text('[' * 99999)
  assert table.main([a]) == 3 and 'a.json is not readable JSON' in capsys.readouterr().err
