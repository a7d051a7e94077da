"""Tests of the page: one file, with escaped text of the run, and a sentence for missing parts."""

import re

import fake_run
import pytest

from gdistill.evaluation.report import page
from gdistill.evaluation.report import tables
from gdistill.workdir import storage


def test_the_page_asks_the_network_for_nothing(small_page):
  assert 'http:' not in small_page and 'https:' not in small_page and '@import' not in small_page
  links = re.findall(r'(?:src|href|url|action)\s*[=(]\s*["\']?([^"\'\s)>]+)', small_page)
  assert links and all(link[0] == '#' or link.startswith('data:') for link in links)
  assert not re.search(r'<(link|iframe|object|embed|base)\b', small_page)
  assert "default-src 'none'" in small_page  # the browser blocks any address that this test missed
  ids = re.findall(r'\bid="([^"]+)"', small_page)
  assert {link[1:] for link in links if link[0] == '#'} <= set(ids)


def test_a_hostile_row_is_only_text(tmp_path):
  evil = '</script><script>alert(1)</script><img src=x onerror=alert(2)> {{data}} | $x'
  rows = fake_run.rows(ws=(1.0,), steps=(2,))
  rows[1].update(stage=evil, sampler=evil, round=evil, cell='../../etc/passwd', surprise=evil)
  folder = storage.path(tmp_path) / 'a&lt;<b>'
  fake_run.workdir(folder, rows, pictures=False, rounds=False)
  storage.write_json(folder / 'r<i>0' / 'card.json', {'stage': evil, evil: evil, 'num_steps': evil})
  storage.write_bytes(folder / 'r<i>0' / 'metrics.jsonl', b'{"step": 1, "loss": 2.0}\n{"st')
  storage.write_json(folder / 'config.json', {evil: evil})
  storage.write_json(folder / 'time.json', {evil: 3.0})
  written = page.write(folder).read_text()
  assert written.count('<script') == 2 and written.count('</script>') == 2
  assert '<img' not in written and '<i>0' not in written
  assert '<b>' not in re.sub(r'<b>[\d.]+</b>', '', written)
  text = fake_run.text_of(written)
  assert f'student after {evil}, {evil}' in text  # as the label of a series
  assert f'"{evil}": "{evil}"' in text  # in a card; JSON needs no escapes for this text
  assert 'model: a&lt;<b>' in text and f'{evil} 3.0 s' in text and 'Card of r<i>0' in text
  assert any(r.get('surprise') == evil for r in fake_run.embedded(written)['rows'])
  table = tables.markdown(rows)
  assert '<' not in table and '\\|' in table


def test_a_hostile_protocol_and_a_hostile_column_are_only_text(tmp_path):
  evil = '<script>alert(1)</script>{{ data }}{% raw %}'
  about = dict.fromkeys(('extractor', 'distance', 'resize', 'reference_set', evil), evil)
  rows = [{**r, **about} for r in fake_run.rows(ws=(1.0,), steps=(2,)) if r['model'] != 'data']
  folder = fake_run.workdir(storage.path(tmp_path), rows, pictures=False, rounds=False)
  written = page.write(folder).read_text()
  assert written.count('<script') == 2
  text = fake_run.text_of(written)
  assert f'FD = {evil}, a Fréchet distance in the features of {evil}' in text
  assert f'{evil}: {evil}.' in text  # all rows share the value, so it is printed once


def test_an_empty_workdir_has_a_page_that_says_so(tmp_path):
  text = fake_run.text_of(page.write(tmp_path).read_text())
  for words in ('Nothing has been measured yet', 'No rows yet', 'No rows to plot', 'No times',
                'No round has been trained', 'No config', 'No pictures were saved'):  # fmt: skip
    assert words in text


def test_broken_files_leave_gaps(tmp_path):
  folder = fake_run.workdir(storage.path(tmp_path), fake_run.rows(ws=(1.0,), steps=(2,)))
  rows = storage.read_json(folder / 'report' / 'metrics.json')
  for row, data in zip(rows, (b'', b'PK\3\4 not a zip', b'\x93NUMPY'), strict=False):
    storage.write_bytes(folder / 'evaluation' / 'cells' / f'{row["cell"]}.npz', data)
  storage.write_bytes(folder / '01_guidance' / 'card.json', b'{')
  storage.write_bytes(folder / 'time.json', b'[1, 2')
  rows += [
    'not a row',
    {'model': 'student'},
    {'model': 'student', 'num_steps': -1, 'w': 1.0},
    {'model': 'student', 'num_steps': 'x', 'w': 'y'},
  ]
  storage.write_json(folder / 'report' / 'metrics.json', rows)
  data = fake_run.embedded(page.write(folder).read_text())
  assert sorted(bool(c['sprite']) for c in data['cells']) == [False] * 3 + [True] * 2


@pytest.mark.parametrize(
  'keep, words',
  [
    (lambda r: r['model'] == 'student', 'no teacher with more steps was measured at this w'),
    (lambda r: r['model'] == 'teacher', 'no student yet'),
    (lambda r: r['model'] == 'data', 'Nothing has been measured'),
    (lambda r: r['w'] == 1.0, 'Only w = 1 was measured'),
    (lambda r: r['model'] != 'data' and r['w'] == 1.0, 'the student at 2 steps'),
    (lambda r: r['w'] in (None, 1.0), 'the student at 2 steps'),
  ],
)
def test_parts_of_a_grid_are_enough(tmp_path, keep, words):
  rows = [r for r in fake_run.rows(ws=(0.0, 1.0), steps=(2,)) if keep(r)]
  folder = fake_run.workdir(storage.path(tmp_path), rows, pictures=False, rounds=False)
  written = page.write(folder).read_text()
  assert words in fake_run.text_of(written)
  # The legend names the floor only if the floor is drawn.
  has_floor = len(rows) > 1 and any(r['model'] == 'data' for r in rows)
  assert ('training images against held-out' in written) == has_floor


def test_what_all_rows_share_is_said_once(tmp_path):
  rows = fake_run.rows((1.0,), (2,))
  rows = [{**r, 'seeds': '0..1999', 'set': i % 2} for i, r in enumerate(rows)]
  folder = fake_run.workdir(storage.path(tmp_path), rows, pictures=False, rounds=False)
  written = page.write(folder).read_text()
  assert fake_run.text_of(written).count('seeds: 0..1999.') == 1
  columns = fake_run.embedded(written)['columns']
  assert 'set' in columns and 'seeds' not in columns


def test_rows_without_values_are_dashes(tmp_path):
  rows = [
    {'model': m, 'sampler': 'ddim', 'num_steps': n, 'w': 1.0, 'fd': None, 'inception_score': 'nan'}
    for m, n in (('teacher', 64), ('student', 4))
  ]
  storage.write_json(tmp_path / 'report' / 'metrics.json', rows)
  text = fake_run.text_of(page.write(tmp_path).read_text())
  assert 'has FD – for an unknown number of network calls' in text and 'No row has fd.' in text
  assert '| student, DDIM | 4 | – | – / – |' in tables.markdown(rows)


def test_the_page_sets_quality_against_seconds_and_fd_against_the_score(small_page):
  assert 'FD against seconds, for each w' in small_page
  assert 'FD against the inception score over w, for each number of steps' in small_page


def test_no_label_of_a_plot_is_left_in_tex(small_page):
  assert 'mathdefault' not in small_page


def test_the_page_names_the_classes_by_number(tmp_path):
  folder = fake_run.workdir(storage.path(tmp_path), fake_run.rows(ws=(1.0,), steps=(2,)))
  card = {'stage': 'teacher', 'class_names': ['<b>cat', *(f'c{k}' for k in range(1, 25))]}
  storage.write_json(folder / '99_last' / 'card.json', card)
  text = fake_run.text_of(page.write(folder).read_text())
  assert 'Image i shows the class i mod 25; the classes are 0 “<b>cat”, 1 “c1”' in text
  assert '19 “c19” and 5 more. With 10' in text and '“c20”' not in text
  for other in ({'latents': {'text': 'clip'}}, {'class_names': 5}, {'imported': {'kind': 'x'}}):
    names = {'class_names': ['0', '1']} | other
    storage.write_json(folder / '99_last' / 'card.json', {'stage': 'teacher', **names})
    assert 'the classes are' not in fake_run.text_of(page.write(folder).read_text())
