"""Whole runs through the command line: tiny digits, several devices, two processes."""

import json
import pathlib
import socket
import subprocess
import sys

import micro
import numpy as np
import pytest

from gdistill import checkpoints
from gdistill import storage
from gdistill.cli import edge
from gdistill.evaluation import report

ROOT = pathlib.Path(__file__).parent.parent
pytestmark = pytest.mark.heavy


def start(folder, config, *more):
  file = folder / 'config.json'
  file.write_text(json.dumps(config))
  return subprocess.Popen(
    [sys.executable, '-m', 'gdistill.main', f'--config={file}', f'--workdir={folder}/run', *more],
    cwd=ROOT, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip


def finished(*children, code=0):
  for child in children:
    _, lines = child.communicate(timeout=600)
    assert child.returncode == code, lines
  return lines


def params(folder, name):
  return storage_flat(checkpoints.read_params(folder / 'run' / name))


def storage_flat(tree, prefix=''):
  out = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      out |= storage_flat(value, f'{prefix}{key}/')
    else:
      out[prefix + key] = np.asarray(value)
  return out


def assert_close(a, b, bar):
  """Relative L2 over all parameters: biases ahead of a group norm have gradients of mere rounding,
  which Adam scales up, so that leaf by leaf the smallest ones differ more."""
  assert a.keys() == b.keys()
  difference, whole = (
    np.sqrt(sum(np.sum(np.square(np.float64(x))) for x in part))
    for part in ([a[name] - b[name] for name in a], b.values())
  )
  assert difference / whole <= bar, difference / whole


@pytest.mark.parametrize('change', [{}, {'sampler': 'stochastic'}, {'state': 'trajectory'}])
def test_the_tiny_digits_run_from_data_to_report(tmp_path, change):
  config = edge.load_config('configs/digits.py:tiny', [])
  config['progressive'].update(change)
  if 'state' in change:
    config['guidance'].update(state='trajectory', trajectory_steps=4, ws_per_pass=2, one_batch=True)
  finished(start(tmp_path, config))
  rows = json.loads((tmp_path / 'run' / 'report' / 'metrics.json').read_text())
  sampler = 'stochastic' if 'sampler' in change else 'ddim'
  assert {r['sampler'] for r in rows if r['model'] == 'student'} == {sampler}
  assert all(np.isfinite(r['fd']) for r in rows)
  page = (tmp_path / 'run' / 'report' / 'index.html').read_text()
  assert 'http://' not in page.replace('http://www.w3.org', '') and len(page) < 3e6
  assert '| student |' in report.markdown(rows) or 'student' in report.markdown(rows)


def test_four_devices_sharded_two_ways_train_as_one_does(tmp_path):
  folders = {}
  for name, mesh in (('one', {}), ('four', {'cpu_devices': 4, 'data': 2, 'fsdp': 2})):
    folders[name] = tmp_path / name
    folders[name].mkdir()
    finished(start(folders[name], micro.config(mesh=mesh)))
  for round_name in ('00_teacher', '01_guidance'):
    assert_close(*(params(folders[n], round_name) for n in ('four', 'one')), bar=1e-4)


def test_microbatches_and_one_batch_of_both_passes_change_nothing_but_rounding(tmp_path):
  folders = {}
  plain = {'model': {'dropout': 0.0}}  # whose masks belong to a row's place in its microbatch
  parts = {'teacher': {'accumulation': 2}, 'guidance': {'accumulation': 2, 'one_batch': True}}
  variants = {'whole': plain, 'parts': {**plain, **parts}}
  for name, change in variants.items():
    folders[name] = tmp_path / name
    folders[name].mkdir()
    finished(start(folders[name], micro.config(**change)))
  for round_name in ('00_teacher', '01_guidance'):
    assert_close(*(params(folders[n], round_name) for n in ('parts', 'whole')), bar=1e-4)


def two_processes(tmp_path, configs):
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  children = []
  for i, config in enumerate(configs):
    folder = tmp_path / f'process{i}'
    folder.mkdir()
    flags = [f'--coordinator=127.0.0.1:{port}', '--num_processes=2', f'--process_id={i}']
    children.append(start(folder, config, *flags, f'--workdir={tmp_path}/run'))
  return children


def test_two_processes_train_as_one_with_two_devices(tmp_path):
  finished(*two_processes(tmp_path, [micro.config()] * 2))
  alone = tmp_path / 'alone'
  alone.mkdir()
  finished(start(alone, micro.config(mesh={'cpu_devices': 2})))
  for name in ('00_teacher', '03_progressive_1'):
    assert_close(params(tmp_path, name), params(alone, name), bar=1e-4)
  assert storage.exists(tmp_path / 'run' / 'report' / 'index.html')


def test_two_processes_with_different_configs_are_refused(tmp_path):
  other = micro.config(teacher={'lr': 1e-3})
  children = two_processes(tmp_path, [micro.config(), other])
  assert 'differs between processes' in finished(*children, code=2)
  assert not (tmp_path / 'run').exists()
