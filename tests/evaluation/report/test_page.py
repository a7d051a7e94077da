"""The page is one file, escapes what it is given, and says in words what is missing."""

import base64
import html
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from gdistill import storage
from gdistill.evaluation.report import page as report

WS, STEPS = (0.0, 0.3, 1.0, 2.0, 4.0), (1, 2, 4, 8, 16)


def fake_rows(ws=WS, steps=STEPS):
  """Made-up numbers, so that FD says where it came from: see `fake_fd`."""
  rounds = {n: f'{i + 2:02d}_progressive_{n}' for i, n in enumerate(sorted(steps, reverse=True))}
  rows = []
  for w in ws:
    places = [('teacher', 'teacher', 'ddim', 256, '00_teacher')]
    places += [('student', 'guidance', 'ddim', 256, '01_guidance')]
    for n in steps:
      places += [('student', 'progressive', 'ddim', n, rounds[n])]
      places += [('teacher', 'teacher', s, n, '00_teacher') for s in ('ddim', 'dpm_solver')]
    for model, stage, sampler, n, folder in places:
      fd = fake_fd(model, sampler, n, w)
      rows.append({
        'model': model, 'stage': stage, 'sampler': sampler, 'num_steps': n, 'w': w,
        'network_calls': n * (2 if model == 'teacher' and w else 1), 'fd': fd,
        'fd_held_out': fd + 1, 'fd_teacher': fd / 3, 'rms_teacher': 0.4 / n,
        'inception_score': 9.2 - fd / 40, 'accuracy': 0.97, 'precision': 0.9,
        'recall': 0.8 - w / 10, 'nearest_training': 5.5, 'nearest_held_out': 6.5, 'images': 2000,
        'seconds_per_image': 0.001 * n, 'grid': 'full', 'guided': model == 'teacher',
        'cell': f'{model}-{stage}-{sampler}-{n}-w{w}', 'round': folder,
      })  # fmt: skip
  data = {'model': 'data', 'sampler': None, 'num_steps': 0, 'w': None, 'fd': 2.25, 'images': 360}
  return [*rows, data]


def fake_fd(model, sampler, n, w):
  hardness = {('student', 'ddim'): 6.0, ('teacher', 'dpm_solver'): 60.0}.get(
    (model, sampler), 100.0
  )
  return 3 + w * w / 2 + hardness / n**1.2


def fake_workdir(folder, rows, pictures=True, rounds=True):
  """A workdir as a finished run leaves it, with digits for samples."""
  digits = np.round(datasets.load_digits().images * 255 / 16).astype(np.uint8)[..., None]
  labels = datasets.load_digits().target
  rng = np.random.default_rng(0)
  storage.write_json(folder / 'report' / 'metrics.json', rows)
  for row in rows if pictures else ():
    if 'cell' in row:
      index = [np.flatnonzero(labels == i % 10)[i] for i in range(40)]
      noise = rng.normal(0, 60 / row['num_steps'], (40, 8, 8, 1))
      pixels = np.clip(digits[index] + noise, 0, 255).astype(np.uint8)
      file = io.BytesIO()
      np.savez_compressed(file, pixels=pixels)
      storage.write_bytes(folder / 'evaluation' / 'cells' / f'{row["cell"]}.npz', file.getvalue())
  for name in sorted({r['round'] for r in rows if r.get('round')}) if rounds else ():
    num_steps = int(name.split('_')[-1]) if name[-1].isdigit() else 256
    card = {'stage': name.split('_')[1], 'num_steps': num_steps, 'takes_w': name != '00_teacher',
            'w_min': 0.0, 'w_max': 4.0, 'parameters': 612345, 'seconds': 45.5,
            'versions': {'jax': '0.10.2'}, 'something_new': [1, 2]}  # fmt: skip
    storage.write_json(folder / name / 'card.json', card)
    lines = [
      json.dumps({'step': i, 'loss': np.exp(-i / 300) + 0.1 * rng.random(), 'grad_norm': 1.0,
                  'lr': 1e-3, 'updates_per_second': 11.0})
      for i in range(0, 1000, 4)
    ]  # fmt: skip
    storage.write_bytes(folder / name / 'metrics.jsonl', '\n'.join(lines).encode())
  storage.write_json(folder / 'config.json', {'seed': 0, 'data': {'name': 'digits'}})
  storage.write_json(
    folder / 'time.json', {'productive': 300.0, 'compile': 41.0, 'save': 3.5, 'evaluate': 77.0}
  )
  return folder


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  folder = storage.path(tmp_path_factory.mktemp('run') / 'digits')
  fake_workdir(folder, fake_rows(ws=(0.0, 1.0, 4.0), steps=(2, 4)))
  return report.write(folder).read_text()


def embedded(page):
  return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])


def text_of(page):
  """What a reader sees without JavaScript."""
  page = re.sub(r'<(style|script|noscript)\b.*?</\1>', '', page, flags=re.DOTALL)
  return html.unescape(re.sub(r'\s+', ' ', re.sub(r'<[^>]*>', ' ', page)))


def test_the_page_asks_the_network_for_nothing(page):
  assert 'http:' not in page and 'https:' not in page and '@import' not in page
  links = re.findall(r'(?:src|href|url|action)\s*[=(]\s*["\']?([^"\'\s)>]+)', page)
  assert links and all(link[0] == '#' or link.startswith('data:') for link in links)
  assert not re.search(r'<(link|iframe|object|embed|base)\b', page)
  assert "default-src 'none'" in page  # the browser refuses what the eye missed
  ids = re.findall(r'\bid="([^"]+)"', page)
  assert {link[1:] for link in links if link[0] == '#'} <= set(ids)


def test_the_whole_grid_stays_small(tmp_path):
  rows = fake_rows()
  folder = fake_workdir(storage.path(tmp_path), rows, rounds=False)
  data, _, _ = report._cells(folder, report._series(report._clean(rows)))
  assert sum(len(c['sprite']) for c in data) < 1_000_000


def test_the_summary_is_computed_from_the_rows(page):
  student, teacher = fake_fd('student', 'ddim', 4, 1.0), fake_fd('teacher', 'ddim', 256, 1.0)
  short = fake_fd('teacher', 'ddim', 4, 1.0)
  text = text_of(page)
  assert f'At w = 1 the student at 4 steps has FD {student:.2f} for 4 network calls' in text
  assert f'256-step reference has FD {teacher:.2f} for 512 network calls' in text
  assert f'cut to 4 steps of DDIM has FD {short:.1f} for 8 network calls' in text
  assert report.PROTOCOL in text


def test_every_place_of_the_table_holds_its_own_row(page):
  table = re.search(r'<table class="numbers">.*?</table>', page, re.DOTALL)[0]
  lines = [re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', r) for r in re.findall(r'<tr.*?</tr>', table)]
  names = {'student, DDIM': ('student', 'ddim'), 'teacher, DDIM': ('teacher', 'ddim'),
           'student after guidance, DDIM': ('student', 'ddim'),
           'teacher, DPM-Solver++': ('teacher', 'dpm_solver')}  # fmt: skip
  assert len(lines) == 2 + 2 + 1 + 3 + 2  # heads, student, guidance, teacher with 256, DPM
  for label, steps, calls, *cells in lines[2:]:
    fds = [fake_fd(*names[label], int(steps), w) for w in (0.0, 1.0, 4.0)]
    assert [float(c) for c in cells[::2]] == pytest.approx(fds, rel=0.01)
    scores = [9.2 - fd / 40 for fd in fds]
    assert [float(c) for c in cells[1::2]] == pytest.approx(scores, abs=0.006)
    assert int(calls) == int(steps) * (2 if label.startswith('teacher') else 1)


def test_markdown_says_what_the_page_says(page):
  lines = report.markdown(fake_rows(ws=(0.0, 1.0, 4.0), steps=(2, 4))).splitlines()
  cells = [[c.strip() for c in line.strip('|').split('|')] for line in lines if line[:1] == '|']
  assert {len(line) for line in cells} == {6} and len(cells) == 2 + 8
  fd = fake_fd('student', 'ddim', 4, 4.0)
  row = next(c for c in cells if c[:3] == ['student, DDIM', '4', '4'])
  assert row[-1] == f'{fd:.1f} / {9.2 - fd / 40:.2f}'
  assert lines[-1] == report.PROTOCOL + '.'


def test_pictures_are_those_of_their_cell(tmp_path):
  rows = fake_rows(ws=(1.0,), steps=(2,))
  folder = fake_workdir(storage.path(tmp_path), rows, rounds=False)
  cells = embedded(report.write(folder).read_text())['cells']
  assert len({c['sprite'] for c in cells}) == len(cells) == 5
  chosen = [r for places in report._series(rows).values() for r in places.values()]
  for cell, row in zip(cells, chosen, strict=True):
    with np.load(folder / 'evaluation' / 'cells' / f'{row["cell"]}.npz') as file:
      pixels = file['pixels'][..., 0]
    image = np.array(Image.open(io.BytesIO(base64.b64decode(cell['sprite']))))
    assert image.shape == (4 * 9 + 1, 10 * 9 + 1)
    for i in (0, 9, 10, 39):  # image i stands at column i % 10, its class, and row i // 10
      top, left = 1 + i // 10 * 9, 1 + i % 10 * 9
      np.testing.assert_array_equal(image[top : top + 8, left : left + 8], pixels[i])


def test_many_large_pictures_are_made_fewer_then_smaller(tmp_path, monkeypatch):
  rows = [r for r in fake_rows(ws=(1.0,), steps=(2,)) if 'cell' in r]
  rng = np.random.default_rng(0)
  for row in rows:
    file = io.BytesIO()
    np.savez(file, pixels=rng.integers(0, 256, (40, 64, 64, 3)).astype(np.uint8))
    storage.write_bytes(
      storage.path(tmp_path) / 'evaluation' / 'cells' / f'{row["cell"]}.npz', file.getvalue()
    )
  monkeypatch.setattr(report, '_PICTURE_BYTES', 200_000)
  cells, across, note = report._cells(storage.path(tmp_path), report._series(rows))
  assert sum(len(c['sprite']) for c in cells) <= 200_000
  assert across == [10, 1] and 'Images 0 to 9' in note and '4 times smaller' in note


def test_a_hostile_row_is_only_text(tmp_path):
  evil = '</script><script>alert(1)</script><img src=x onerror=alert(2)> {{data}} | $x'
  rows = fake_rows(ws=(1.0,), steps=(2,))
  rows[1].update(stage=evil, sampler=evil, round=evil, cell='../../etc/passwd', surprise=evil)
  folder = storage.path(tmp_path) / 'a&lt;<b>'
  fake_workdir(folder, rows, pictures=False, rounds=False)
  storage.write_json(folder / 'r<i>0' / 'card.json', {'stage': evil, evil: evil, 'num_steps': evil})
  storage.write_bytes(folder / 'r<i>0' / 'metrics.jsonl', b'{"step": 1, "loss": 2.0}\n{"st')
  storage.write_json(folder / 'config.json', {evil: evil})
  storage.write_json(folder / 'time.json', {evil: 3.0})
  page = report.write(folder).read_text()
  assert page.count('<script') == 2 and page.count('</script>') == 2
  assert (
    '<img' not in page and '<i>0' not in page and '<b>' not in re.sub(r'<b>[\d.]+</b>', '', page)
  )
  assert evil in text_of(page)
  assert any(r.get('surprise') == evil for r in embedded(page)['rows'])
  table = report.markdown(rows)
  assert '<' not in table and '\\|' in table


def test_a_cell_cannot_lead_out_of_its_folder(tmp_path):
  folder = storage.path(tmp_path)
  file = io.BytesIO()
  np.savez(file, pixels=np.zeros((40, 8, 8, 1), np.uint8))
  storage.write_bytes(folder / 'evaluation' / 'secret.npz', file.getvalue())
  storage.write_bytes(folder / 'evaluation' / 'cells' / 'fine-1,w=0.5.npz', file.getvalue())
  assert report._pixels(folder, 'fine-1,w=0.5') is not None
  for cell in ('../secret', '..', '/etc/passwd', '', None, 7):
    assert report._pixels(folder, cell) is None


def test_an_empty_workdir_has_a_page_that_says_so(tmp_path):
  text = text_of(report.write(tmp_path).read_text())
  for words in ('Nothing has been measured yet', 'No rows yet', 'No rows to plot', 'No times',
                'No round has been trained', 'No config', 'No pictures were saved'):  # fmt: skip
    assert words in text


def test_broken_files_leave_gaps(tmp_path):
  folder = fake_workdir(storage.path(tmp_path), fake_rows(ws=(1.0,), steps=(2,)))
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
  data = embedded(report.write(folder).read_text())
  assert sorted(bool(c['sprite']) for c in data['cells']) == [False] * 3 + [True] * 2


@pytest.mark.parametrize(
  'keep, words',
  [
    (lambda r: r['model'] == 'student', 'no longer teacher reference'),
    (lambda r: r['model'] == 'teacher', 'no student yet'),
    (lambda r: r['model'] == 'data', 'Nothing has been measured'),
    (lambda r: r['w'] == 1.0, 'Only w = 1 was measured'),
    (lambda r: r['model'] != 'data' and r['w'] == 1.0, 'the student at 2 steps'),
  ],
)
def test_parts_of_a_grid_are_enough(tmp_path, keep, words):
  rows = [r for r in fake_rows(ws=(0.0, 1.0), steps=(2,)) if keep(r)]
  folder = fake_workdir(storage.path(tmp_path), rows, pictures=False, rounds=False)
  page = report.write(folder).read_text()
  assert words in text_of(page)
  assert ('training digits against held-out' in page) == any(r['model'] == 'data' for r in rows
                                                             if len(rows) > 1)  # fmt: skip


def test_what_all_rows_share_is_said_once(tmp_path):
  rows = [{**r, 'seeds': '0..1999', 'set': i % 2} for i, r in enumerate(fake_rows((1.0,), (2,)))]
  folder = fake_workdir(storage.path(tmp_path), rows, pictures=False, rounds=False)
  page = report.write(folder).read_text()
  assert text_of(page).count('seeds: 0..1999.') == 1
  columns = embedded(page)['columns']
  assert 'set' in columns and 'seeds' not in columns


def test_rows_without_values_are_dashes(tmp_path):
  rows = [
    {'model': m, 'sampler': 'ddim', 'num_steps': n, 'w': 1.0, 'fd': None, 'inception_score': 'nan'}
    for m, n in (('teacher', 64), ('student', 4))
  ]
  storage.write_json(tmp_path / 'report' / 'metrics.json', rows)
  text = text_of(report.write(tmp_path).read_text())
  assert 'has FD – for an unknown number of network calls' in text and 'No row has fd.' in text
  assert '| student, DDIM | 4 | – | – / – |' in report.markdown(rows)


def test_guided_is_named_only_where_both_exist():
  row = {'model': 'teacher', 'sampler': 'ddim', 'num_steps': 4, 'w': 1.0, 'guided': True}
  assert list(report._series([row])) == ['teacher, DDIM']
  both = report._series([row, {**row, 'guided': False}])
  assert list(both) == ['teacher, DDIM, guided', 'teacher, DDIM, unguided']


def test_a_round_shows_itself_at_its_own_steps(tmp_path):
  rows = [
    {'model': 'student', 'stage': 'progressive', 'sampler': 'ddim', 'num_steps': n, 'w': 1.0,
     'round': '02_progressive_4', 'cell': f'c{n}'}
    for n in (2, 4, 8)
  ]  # fmt: skip
  folder = fake_workdir(storage.path(tmp_path), rows)
  data = embedded(report.write(folder).read_text())
  (entry,) = data['rounds']
  ((w, index),) = entry['cells']
  assert w == 1.0 and data['cells'][index]['num_steps'] == 4


def test_curves_hold_one_place_fixed_and_skip_what_is_unknown():
  series = report._series(report._clean(fake_rows(ws=(0.0, 1.0), steps=(1, 2, 4))))
  series['student, DDIM'][2, 1.0]['fd'] = None
  series['teacher, DDIM'][2, 1.0]['fd'] = 0.0  # has no place on a logarithmic axis
  styles = {label: i for i, label in enumerate(series)}
  (i, steps, fds), _, teacher, _ = report._lines(series, styles, 'fd', 'num_steps', 'w', 1.0)
  assert teacher[:2] == (2, (1, 4, 256))
  assert (i, steps) == (0, (1, 4))
  assert fds == tuple(fake_fd('student', 'ddim', n, 1.0) for n in steps)


def test_the_page_sets_quality_against_seconds_and_fd_against_the_score(page):
  assert 'FD against seconds, for each w' in page
  assert 'FD against the inception score over w, for each number of steps' in page


def test_no_label_of_a_plot_is_left_in_tex(page):
  assert 'mathdefault' not in page


def test_a_curve_of_fd_against_the_score_goes_through_the_strengths(monkeypatch):
  drawn = {}
  keep = lambda name, lines, **more: drawn.setdefault(name, lines) and ''
  monkeypatch.setattr(report.plots, 'curves', keep)
  rows = [r for r in fake_rows() if r['sampler'] == 'ddim' and r['stage'] == 'progressive']
  series = report._series(rows)
  report._trade(series, dict.fromkeys(series, 'a style'), [1, 4], (1, 100), '')
  assert sorted(drawn) == ['trade 1', 'trade 4']
  [(style, scores, fds)] = drawn['trade 4']
  expected = [fake_fd('student', 'ddim', 4, w) for w in WS]
  assert style == 'a style' and list(fds) == expected
  assert list(scores) == [9.2 - fd / 40 for fd in expected]


def test_the_floor_is_called_what_it_is():
  row = {'model': 'floor', 'stage': 'teacher', 'sampler': 'ddim', 'num_steps': 64, 'w': 1.0}
  assert list(report._series([row])) == ['teacher from other seeds, DDIM']


def test_a_distance_is_called_by_its_extractors_name(tmp_path):
  about = {'extractor': 'inception', 'distance': 'FID', 'extractor_digest': '0a1b',
           'resize': 'to 299', 'reference_set': 'cifar10', 'reference_images': 50_000}  # fmt: skip
  rows = [{**r, **about} for r in fake_rows()]
  text = report.markdown(rows)
  assert 'FD = FID, a Fréchet distance in the features of inception (weights 0a1b; to 299)' in text
  assert 'of cifar10' in text and report.PROTOCOL not in text
  assert report.PROTOCOL in report.markdown(fake_rows())
