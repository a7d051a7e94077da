"""Tests of the commands with the flags that a user gives, on a run that trains in seconds."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import time

import micro
import numpy as np
import pytest
import stand_in
from PIL import Image

from gdistill import errors
from gdistill import notebook
from gdistill.cli import command
from gdistill.cli import evaluate as evaluate_command
from gdistill.cli import sample
from gdistill.cli import statistics as statistics_command
from gdistill.cli import table
from gdistill.evaluation.features import extractors
from gdistill.evaluation.grid import cells as grids
from gdistill.evaluation.grid import run as grid_run
from gdistill.training import assemble
from gdistill.workdir import ledger

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(scope='module')
def workdir(micro_run, tmp_path_factory):
  return shutil.copytree(micro_run, tmp_path_factory.mktemp('cli') / 'run')


def test_sample_writes_a_picture_for_every_label_and_seed(workdir, tmp_path, capsys):
  out = tmp_path / 'out'
  given = [f'--folder={workdir}/02_progressive_2', '--w=1', '--num_steps=2', '--labels=0..9']
  assert sample.main([*given, '--seeds=3,5', f'--out={out}']) == 0
  assert len(list(out.glob('label*_seed*.png'))) == 20
  assert Image.open(out / 'label7_seed5.png').size == (8, 8)
  grid = np.asarray(Image.open(out / 'grid.png'))
  assert grid.shape == (8 * (2 * 9 + 1), 8 * (10 * 9 + 1))  # grey lines between and around images
  small = grid[::8, ::8]
  assert (small[::9] == 128).all() and (small[:, ::9] == 128).all()
  one = np.asarray(Image.open(out / sorted(p.name for p in out.glob('label3_*.png'))[1]))
  np.testing.assert_array_equal(small[10:18, 28:36], one)
  assert '2 network calls each' in capsys.readouterr().err
  # An image that is drawn alone has the same pixels.
  assert sample.main([*given[:3], '--labels=7', '--seeds=5', f'--out={tmp_path}/one']) == 0
  one, many = (Image.open(p / 'label7_seed5.png') for p in (tmp_path / 'one', out))
  np.testing.assert_array_equal(one, many)
  # A notebook draws the same pixels.
  gallery = notebook.Gallery(workdir / '02_progressive_2', labels=[7], seeds=[3, 5])
  shown = gallery.pixels(1.0)[1, 0]
  np.testing.assert_array_equal(shown.squeeze(), many)
  assert gallery.num_steps == gallery.network_calls == 2
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'file').write_text('')
  assert sample.main([*given, f'--out={tmp_path}/full']) == 2
  assert 'is not empty' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('more', 'code', 'words'),
  [
    (['--num_steps=4'], 2, '--num_steps=4: this student was distilled for num_steps=2; use'),
    (['--sampler=stochastic'], 2, 'use --sampler=ddim'),
    (['--sampler=euler'], 2, 'must be one of ddim'),
    (['--labels=10'], 2, 'numbers from 0 to 9'),
    (['--labels=3..1'], 2, 'numbers from 0 to 9'),
    (['--labels='], 2, 'numbers from 0 to 9'),
    (['--scale=100000'], 2, 'from 1 to 64'),
    (['--folder=ftp://a/b'], 2, 'must be a local path'),
    (['--seeds=-1'], 2, 'must be numbers'),
    (['--w=nan'], 2, 'must be a number'),
    (['--w=-1'], 2, 'at least 0'),
    (['--w=1e39'], 2, '--w=1e+39 must be a number of at least 0 and at most 1000: guidance'),
    (['--guidance_scale=1e39'], 2, '--guidance_scale=1e+39, which is w = 1e+39, must be'),
    (['--w=9', '--labels=1', '--seeds=1'], 0, 'warning: --w=9.0 is outside 0.0 to 4.0'),
    (['--folder=nowhere'], 4, 'nowhere'),
    (['--folder=model.pt'], 2, 'is a .pt file, not a round folder'),
  ],
)
def test_sample_says_what_is_wrong(workdir, tmp_path, capsys, more, code, words):
  folder = [] if any(a.startswith('--folder') for a in more) else [
    f'--folder={workdir}/02_progressive_2'
  ]  # fmt: skip
  found = sample.main([*folder, *more, f'--out={tmp_path}/out'])
  lines = capsys.readouterr().err
  assert words in lines
  assert found == code
  if code:
    assert not (tmp_path / 'out').exists()


@pytest.mark.full
def test_evaluate_draws_what_is_missing_and_again_what_is_asked_for(workdir, capsys):
  assert evaluate_command.main([f'--workdir={workdir}', '--grid=full']) == 0
  cells = workdir / 'evaluation' / 'cells'
  before = {p.name: p.stat().st_mtime_ns for p in cells.iterdir()}
  rows = json.loads((workdir / 'report' / 'metrics.json').read_text())
  assert {r['grid'] for r in rows} == {'full'}
  assert {r['model'] for r in rows} == {'teacher', 'student', 'floor'}
  floor = [r for r in rows if r['model'] == 'floor']
  assert all(r['seeds'] == '30..59' and r['rms_teacher'] is None for r in floor)
  assert all(r['fd_teacher'] > 1e-3 for r in floor)  # the floor: the same model with other seeds
  real = json.loads((workdir / 'report' / 'data.json').read_text())
  assert [r['set'] for r in real] == ['held out', 'training'] and real[1]['fd'] < 1e-6
  # The cell that is the reference has distance 0 to itself.
  own = [r for r in rows if r['model'] == 'teacher' and r['num_steps'] == 4
         and r['sampler'] == 'ddim']  # fmt: skip
  assert own and all(abs(r['fd_teacher']) < 1e-6 and r['rms_teacher'] == 0 for r in own)
  calls = {(r['model'], r['num_steps']): r['network_calls'] for r in rows}
  assert calls['student', 2] == 2 and calls['teacher', 2] == 4
  again = ['--model=student', '--num_steps=2', '--w=2']
  assert evaluate_command.main([f'--workdir={workdir}', '--grid=full', *again]) == 0
  after = {p.name: p.stat().st_mtime_ns for p in cells.iterdir()}
  assert [n for n in after if after[n] != before[n]] == [
    n for n in after if n.startswith('student-ddim-2-w2-')
  ]
  same = json.loads((workdir / 'report' / 'metrics.json').read_text())
  for a, b in zip(rows, same, strict=True):
    a, b = ({k: v for k, v in r.items() if k != 'seconds_per_image'} for r in (a, b))
    assert a == b
  assert evaluate_command.main([f'--workdir={workdir}', '--preset=cifar10']) == 2
  assert (
    'measures pictures of 32 pixels, and this run draws pictures of 8 pixels'
    in capsys.readouterr().err
  )
  assert evaluate_command.main([f'--workdir={workdir}', '--preset=coco5k']) == 2
  assert (
    'measures pictures drawn from given prompts; draw the pictures with gdistill sample'
    in capsys.readouterr().err
  )
  assert evaluate_command.main([f'--workdir={workdir}', '--num_steps=3']) == 2
  assert (
    'the evaluation grid has no measurement at --num_steps=3; choose' in capsys.readouterr().err
  )
  assert evaluate_command.main(['--workdir=nowhere']) == 2


def test_a_protocol_replaces_values_of_an_older_workdir_that_are_out_of_todays_limits(
  tmp_path, capsys
):
  old = micro.config()
  old['evaluation']['ws'] = [0.0, 2000.0]
  (tmp_path / 'config.json').write_text(json.dumps(old))
  assert evaluate_command.main([f'--workdir={tmp_path}']) == 2
  assert 'evaluation.ws=' in capsys.readouterr().err
  assert evaluate_command.main([f'--workdir={tmp_path}', '--preset=cifar10']) == 2
  assert 'this run draws pictures of 8 pixels' in capsys.readouterr().err


@pytest.mark.full
def test_evaluation_stops_between_batches_and_goes_on(workdir, tmp_path):
  recipe = micro.recipe()
  run = assemble.Run(recipe, workdir)
  cells = grid_run.list_cells(run, grid_run.of_size(run, 'quick'))
  assert cells[0].num_steps == recipe.evaluation.quick_reference_steps
  assert len(cells) == len(set(cells))
  stop = micro.StopAfter(3)
  with pytest.raises(Exception, match='repeat the command'):
    micro.evaluate(workdir, stop=stop)
  kept = {p: p.stat().st_mtime_ns for p in (workdir / 'evaluation' / 'cells').iterdir()}
  micro.evaluate(workdir)
  assert all(p.stat().st_mtime_ns == t for p, t in kept.items())


def stand_in_for_lite0(monkeypatch):
  monkeypatch.setattr(extractors, 'check', lambda *given: None)
  made = lambda name, file='', **options: stand_in.extractor(name, num_classes=0)
  monkeypatch.setattr(extractors, 'load', made)


@pytest.mark.full
def test_rows_of_a_run_and_of_pictures_stand_in_one_table(workdir, tmp_path, monkeypatch, capsys):
  """Measures the pixels of a cell with --images: the figures equal those of the run's report."""
  stand_in_for_lite0(monkeypatch)
  # The bank of the pictures below, because KID depends on it.
  bank = '--config.evaluation.bank=10000'
  assert evaluate_command.main([f'--workdir={workdir}', '--extractor=lite0', bank]) == 0
  rows = json.loads((workdir / 'report' / 'metrics.json').read_text())
  row = next(r for r in rows if (r['model'], r['num_steps'], r['w']) == ('student', 2, 2.0))
  assert row['extractor'] == 'lite0' and 'accuracy' not in row
  pixels = np.load(workdir / 'evaluation' / 'cells' / f'{row["cell"]}.npz')['pixels']
  np.savez(tmp_path / 'pictures.npz', pixels)
  made = f'--out={tmp_path}/real.npz'
  given = [f'--config={workdir}/config.json', '--extractor=lite0']
  assert statistics_command.main([*given, made]) == 0
  given = [f'--images={tmp_path}/pictures.npz', f'--reference={tmp_path}/real.npz']
  assert evaluate_command.main([*given, '--extractor=lite0', f'--out={tmp_path}/row.json']) == 0
  other = json.loads((tmp_path / 'row.json').read_text())
  for key in ('fd', 'kid', 'precision', 'recall', 'inception_score'):
    assert other[key] == pytest.approx(row[key], rel=1e-5), key
  capsys.readouterr()
  files = [f'{workdir}/report/metrics.json', f'{tmp_path}/row.json']
  assert table.main(files) == 0
  assert len(capsys.readouterr().out.splitlines()) == 2 + len(rows) + 1


@pytest.mark.full
def test_a_grid_without_a_bank_has_no_neighbours(workdir, monkeypatch):
  stand_in_for_lite0(monkeypatch)
  given = [f'--workdir={workdir}', '--extractor=lite0', '--config.evaluation.bank=0']
  assert evaluate_command.main(given) == 0
  rows = json.loads((workdir / 'report' / 'metrics.json').read_text())
  assert all('kid' not in r and r['nearest_training'] is None and r['fd'] > 0 for r in rows)


@pytest.mark.full
def test_drawing_anew_forgets_what_was_measured_of_the_old_pictures(workdir, monkeypatch):
  stand_in_for_lite0(monkeypatch)
  assert evaluate_command.main([f'--workdir={workdir}', '--extractor=lite0']) == 0
  given = ['--model=student', '--num_steps=1', '--w=2']
  assert evaluate_command.main([f'--workdir={workdir}', *given]) == 0  # measured by the classifier
  rows = json.loads((workdir / 'report' / 'metrics.json').read_text())
  [name] = [r['cell'] for r in rows if (r['model'], r['num_steps'], r['w']) == ('student', 1, 2.0)]
  left = [p.name for p in (workdir / 'evaluation' / 'measured').glob(f'{name}-*')]
  assert len(left) == 1 and '-classifier-' in left[0]


@pytest.mark.full
def test_a_damaged_cell_is_named(workdir):
  micro.evaluate(workdir)
  recipe = micro.recipe()  # names the cells of the quick grid; other tests draw the full grid too
  run = assemble.Run(recipe, workdir)
  cells = grid_run.list_cells(run, grid_run.of_size(run, 'quick'))
  ids = grids.names(cells, recipe.evaluation.quick_images).values()
  name = next(name for name in ids if name.startswith('student-ddim-1-'))
  cell = workdir / 'evaluation' / 'cells' / f'{name}.npz'
  whole = cell.read_bytes()
  cell.write_bytes(whole[: len(whole) // 2])
  assert evaluate_command.main([f'--workdir={workdir}']) == 4
  cell.unlink()
  assert evaluate_command.main([f'--workdir={workdir}']) == 0


@pytest.mark.parametrize('name', ['', 'train', 'plan', 'sample', 'evaluate'])
def test_help_is_there(name):
  began = time.monotonic()
  done = subprocess.run(
    [sys.executable, '-c', 'from gdistill.cli import command; command.program()',
     *([name] if name else []), '--help'],
    cwd=ROOT, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0 and 'usage' in done.stdout
  print(f'{name or "gdistill"} --help: {time.monotonic() - began:.1f} s')


@pytest.mark.parametrize(
  ('argv', 'words'),
  [
    (['editt'], "gdistill: 'editt' is no command; did you mean edit?"),
    (['do'], "gdistill: 'do' is no command; take one of train, plan, sample"),
    (['--bogus'], "gdistill: '--bogus' is no command; take one of train, plan, sample"),
    (['--debug', 'sample', '--out=b'], 'the following arguments are required: --folder'),
  ],
)
def test_what_is_no_command_is_one_line(capsys, argv, words):
  try:
    code = command.main(argv)
  except SystemExit as e:
    code = e.code
  assert code == 2
  said = capsys.readouterr().err
  assert words in said and said.count('\n') == 1


def test_help_imports_neither_jax_nor_tensorflow():
  code = (
    'import sys\nfrom gdistill.cli import command\n'
    'try: command.main(["sample", "--help"])\nexcept SystemExit: pass\n'
    'print("heavy:", sorted({"jax", "tensorflow", "torch"} & set(sys.modules)))'
  )
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
  assert 'heavy: []' in done.stdout


def test_the_plan_starts_nothing(tmp_path, capsys):
  config = tmp_path / 'config.json'
  config.write_text(json.dumps(micro.config()))
  assert command.main(['plan', f'--config={config}', f'--workdir={tmp_path}/run']) == 0
  text = capsys.readouterr().out
  assert re.search(r'total +40 ', text) and 'compiled train steps: 3' in text
  assert re.search(r'Total: \d', text) and 'bytes' in text
  assert 'none; to do: 4 rounds' in text.splitlines()[-1]
  assert not (tmp_path / 'run').exists()


def test_the_plan_says_what_is_finished(workdir, capsys):
  given = [f'--config={workdir}/config.json', f'--workdir={workdir}']
  assert command.main(['plan', *given]) == 0
  last = capsys.readouterr().out.splitlines()[-1]
  assert '00_teacher, 01_guidance, 02_progressive_2, 03_progressive_1; to do: 0 rounds' in last


def test_configs_that_cannot_be_read_are_said_so(tmp_path, capsys):
  for name, content, words in (
    ('missing.py', None, 'does not exist'),
    ('syntax.py', b'def get_config(:\n', 'line 1'),
    ('latin.py', b'# \xe9\xff\nx = 1\n', 'latin.py'),
    ('raises.py', b'def get_config():\n  return 1 / 0\n', 'ZeroDivisionError'),
    ('bad.json', b'{"a": ', 'not readable JSON'),
    ('list.json', b'[1]', 'must be a section, which is a dict'),
  ):
    file = tmp_path / name
    if content is not None:
      file.write_bytes(content)
    code = command.main(['train', f'--config={file}', f'--workdir={tmp_path}/run'])
    lines = capsys.readouterr().err
    assert code == 2 and words in lines and lines.count('\n') == 1, lines
  assert command.main(['plan', '--config=configs/digits.py:huge']) == 2
  assert "variant='huge'" in capsys.readouterr().err


def test_a_second_writer_is_refused(workdir, capsys):
  with ledger.Lock(workdir):
    done = subprocess.run(
      [sys.executable, '-m', 'gdistill.main', f'--config={workdir}/config.json',
       f'--workdir={workdir}'], cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
  assert done.returncode == 2 and 'pid' in done.stderr


@pytest.mark.parametrize('name', ['train', 'evaluate'])
def test_a_command_that_loses_its_lock_stops_with_2(workdir, tmp_path, capsys, monkeypatch, name):
  def taken_over(lock):
    raise errors.ConfigError('lock.json was taken over')

  monkeypatch.setattr(ledger.Lock, 'check', taken_over)
  where = workdir if name == 'evaluate' else tmp_path / 'run'
  config = [f'--config={workdir}/config.json'] if name == 'train' else []
  assert command.main([name, *config, f'--workdir={where}']) == 2
  assert 'was taken over' in capsys.readouterr().err
  assert not list(tmp_path.rglob('card.json'))


def test_a_round_without_the_teacher_it_descends_from_is_refused_before_training(
  workdir, tmp_path, capsys
):
  shutil.copytree(workdir / '01_guidance', tmp_path / '01_guidance')
  more = ["--config.stages=('progressive',)", f'--config.initial={tmp_path}/01_guidance']
  assert command.main(['plan', f'--config={workdir}/config.json', *more]) == 2
  assert '00_teacher, which is missing; copy that folder too' in capsys.readouterr().err


@pytest.mark.full
def test_the_benchmark_of_sampling_says_how_many_calls_it_compared(workdir):
  done = subprocess.run(
    [sys.executable, 'benchmarks/sampling.py', f'--workdir={workdir}', '--teacher_steps=4',
     '--student_steps=2', '--images=4', '--repeats=1'],
    cwd=ROOT, capture_output=True, text=True, check=True,
  )  # fmt: skip
  found = json.loads(done.stdout)
  assert found['ratio_of_calls'] == 4.0 and found['ratio'] > 0
