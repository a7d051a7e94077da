"""Tests of whole runs through the command line: tiny digits, several devices, two processes."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import micro
import numpy as np
import pytest
from PIL import Image

from gdistill.cli import config_file
from gdistill.evaluation.report import tables
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import storage

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.full
QUICK = os.environ.get('XLA_FLAGS', '')  # those of launch/test.sh, by which programs compile fast


def start(folder, config, *more, flags=''):
  """Starts a run; with the default XLA flags its programs are optimised, as those of users are."""
  file = folder / 'config.json'
  file.write_text(json.dumps(config))
  return subprocess.Popen(
    [sys.executable, '-m', 'gdistill.main', f'--config={file}', f'--workdir={folder}/run', *more],
    cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ, 'XLA_FLAGS': flags},
  )  # fmt: skip


def finished(*children, code=0):
  for child in children:
    _, lines = child.communicate(timeout=1200)
    assert child.returncode == code, lines
  return lines


@pytest.fixture(scope='module')
def digits_run(tmp_path_factory):
  """Returns the workdir of a finished tiny digits run; a test that goes on works on a copy."""
  folder = tmp_path_factory.mktemp('digits')
  finished(start(folder, config_file.load('configs/digits.py:tiny', [])))
  return folder / 'run'


@pytest.mark.parametrize('change', [{}, {'sampler': 'stochastic'}, {'state': 'trajectory'}])
def test_the_tiny_digits_run_from_data_to_report(tmp_path, digits_run, change):
  run = tmp_path / 'run' if change else digits_run
  if change:
    config = config_file.load('configs/digits.py:tiny', [])
    config['progressive'].update(change)
    if 'state' in change:
      config['guidance'].update(
        state='trajectory', trajectory_steps=4, ws_per_pass=2, one_batch=True
      )
    # The teacher is that of `digits_run`, because the change does not reach it.
    config.update(stages=('guidance', 'progressive'), initial=str(digits_run / '00_teacher'))
    finished(start(tmp_path, config, flags=QUICK))
  rows = json.loads((run / 'report' / 'metrics.json').read_text())
  sampler = 'stochastic' if 'sampler' in change else 'ddim'
  assert {r['sampler'] for r in rows if r['model'] == 'student'} == {sampler}
  assert all(np.isfinite(r['fd']) for r in rows)
  page = (run / 'report' / 'index.html').read_text()
  assert 'http://' not in page.replace('http://www.w3.org', '') and len(page) < 3e6
  assert '| student' in tables.markdown(rows)


def test_a_finished_tiny_run_is_given_an_encoders_ladder_and_keeps_its_report(tmp_path, digits_run):
  config, run = config_file.load('configs/digits.py:tiny', []), tmp_path / 'run'
  shutil.copytree(digits_run, run)
  before = {p: p.read_bytes() for p in run.glob('0*/card.json')}
  rows = json.loads((run / 'report' / 'metrics.json').read_text())
  finished(start(tmp_path, config, '--config.encoder=True', flags=QUICK))
  names = sorted(p.parent.name for p in run.glob('*/card.json'))
  assert names[5:] == ['05_encoder_4', '06_encoder_2', '07_encoder_1']
  assert {p: p.read_bytes() for p in before} == before and len(before) == 5
  again = json.loads((run / 'report' / 'metrics.json').read_text())
  assert [r['cell'] for r in again] == [r['cell'] for r in rows]
  assert '07_encoder_1' in (run / 'report' / 'index.html').read_text()
  for more in ([], ['--config.encoder=True']):
    assert 'nothing to do' in finished(start(tmp_path, config, *more))


def two_processes(tmp_path, configs, workdirs=()):
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  children = []
  for i, config in enumerate(configs):
    folder = tmp_path / f'process{i}'
    folder.mkdir()
    flags = [f'--coordinator=127.0.0.1:{port}', '--num_processes=2', f'--process_id={i}']
    workdir = workdirs[i] if workdirs else tmp_path / 'run'
    children.append(start(folder, config, *flags, f'--workdir={workdir}', flags=QUICK))
  return children


def test_two_processes_with_different_configs_are_refused(tmp_path):
  other = micro.config(teacher={'lr': 1e-3})
  children = two_processes(tmp_path, [micro.config(), other])
  assert 'differs between processes' in finished(*children, code=2)
  assert not (tmp_path / 'run').exists()


def test_two_processes_that_do_not_share_the_workdir_are_told_so(tmp_path):
  # An old lock in the second workdir must not pass for the lock that process 0 has just taken.
  storage.write_json(tmp_path / 'b' / 'lock.json', {'token': 'old', 'heartbeat': 0})
  children = two_processes(tmp_path, [micro.config()] * 2, [tmp_path / 'a', tmp_path / 'b'])
  lines = finished(*children, code=2)
  assert f'--workdir={tmp_path}/b is not the same folder for all processes' in lines


def photographs(folder, size, classes, each):
  """Writes noise into class folders, as pictures 5 pixels wider than the square a run needs."""
  rng = np.random.default_rng(0)
  for split in ('train', 'test'):
    for c in range(classes):
      (folder / split / f'class{c:04d}').mkdir(parents=True)
      for i in range(each):
        pixels = rng.integers(0, 256, (size, size + 5, 3), np.uint8)
        Image.fromarray(pixels).save(folder / split / f'class{c:04d}' / f'{i}.png')
  return folder


def cifar10(tmp_path, **data):
  config = config_file.load('configs/cifar10.py:tiny', [])
  source = photographs(tmp_path / 'pictures', config['model']['image_size'], 10, 20)
  config['data'].update(dict(name='folder', path=str(source), held_out_split='test'), **data)
  return config, source


def ends_well(run):
  last = sorted(p.name for p in run.glob('*progressive*'))[-1]
  card = finished_rounds.read_card(run / last)
  assert card['num_steps'] == 1 and card['takes_w']
  assert card['class_names'] == [f'class{c:04d}' for c in range(10)]
  rows = json.loads((run / 'report' / 'metrics.json').read_text())
  assert rows and all(np.isfinite(r['fd']) for r in rows)
  return run / last


def test_cifar10_runs_whole_on_a_folder_and_only_on_that(tmp_path):
  config, source = cifar10(tmp_path)
  config['mesh']['cpu_devices'] = 2
  finished(start(tmp_path, config))
  last = ends_well(tmp_path / 'run')
  next((source / 'train').glob('*/*.png')).unlink()
  (last / 'card.json').unlink()
  assert 'are not those this run began with' in finished(start(tmp_path, config), code=3)


def test_two_processes_run_cifar10_on_prepared_records_read_by_workers(tmp_path):
  config, source = cifar10(tmp_path, name='records', path=f'{tmp_path}/records', workers=1)
  # Two levels with attention at the lower one, because both processes compile every program.
  config['model'].update(multipliers=(1, 1), attention_resolutions=(16,))
  prepare = [sys.executable, '-c', 'from gdistill.cli import command; command.program()']
  subprocess.run(
    [*prepare, 'prepare', f'--source={source}', f'--out={tmp_path}/records', '--size=32',
     '--held_out_split=test'], cwd=ROOT, check=True,
  )  # fmt: skip
  config['mesh']['cpu_devices'] = 1
  finished(*two_processes(tmp_path, [config, config]))
  ends_well(tmp_path / 'run')
