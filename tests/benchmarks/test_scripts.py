"""Tests that each benchmark script runs, at tiny sizes."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'benchmarks'))
import common  # noqa: E402
import run  # noqa: E402

TORCH = ('torch_step', 'diffusers_sampling', 'features')


def smoke(name, *more):
  """Runs a script with --smoke; returns the JSON object that the script prints."""
  done = subprocess.run(
    [sys.executable, f'benchmarks/{name}.py', '--smoke', *more],
    cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads(done.stdout)


def check(name):
  found = smoke(name)
  assert {r['id'] for r in found['rows']} == set(run.SCRIPTS[name])
  assert all(np.isfinite([r['low'], r['median'], r['high']]).all() for r in found['rows'])
  return found


@pytest.mark.full
@pytest.mark.parametrize('name', [n for n in run.SCRIPTS if n not in TORCH])
def test_it_runs(name):
  check(name)


@pytest.mark.parity
@pytest.mark.parametrize('name', TORCH)
def test_it_runs_against_torch(name):
  pytest.importorskip('torch', reason='bash launch/test.sh parity installs torch')
  pytest.importorskip('diffusers', reason='bash launch/test.sh parity installs diffusers')
  check(name)


@pytest.mark.full
def test_the_accelerator_script_measures_everything_and_keeps_it_in_a_file(tmp_path):
  out = tmp_path / 'found.json'
  found = smoke('accelerator', f'--out={out}', '--peak=1')
  assert json.loads(out.read_text())['measured'] == found['measured'] and not found['left_out']
  what = [m['what'] for m in found['measured']]
  for name in ('matmul', 'copy', 'tiny guidance 2', 'tiny progressive 2', 'tiny sampling 2'):
    assert name in what
  ten = found['slowest_convolutions']['tiny']['ten']
  assert len(ten) == 4  # a network of one width has four kinds of convolutions
  step = next(m for m in found['measured'] if m['what'] == 'tiny guidance 2')
  assert step['share'] == step['tflops'] > 0 and step['loss_is_finite']


@pytest.mark.full
def test_the_accelerator_script_ends_in_time_with_what_it_has(tmp_path):
  out = tmp_path / 'found.json'
  found = smoke('accelerator', f'--out={out}', '--seconds=2')
  assert found['left_out'] and json.loads(out.read_text())['left_out']


@pytest.mark.parity
@pytest.mark.parametrize('takes_w', [False, True])
@pytest.mark.parametrize('network', ['tiny', 'small32'])
def test_the_torch_network_computes_what_ours_does(network, takes_w):
  torch = pytest.importorskip('torch', reason='bash launch/test.sh parity installs torch')
  import torch_unet

  settings = common.recipe(network).model
  params = common.random_params(settings, takes_w)
  z, logsnr, label, w = common.inputs(settings, 3)
  label[0] = -1
  ours = common.network(settings, takes_w)(params, z, logsnr, label, w)
  net = torch_unet.load(torch_unet.UNet(settings, takes_w), params)
  given = [torch.from_numpy(a) for a in (z.transpose(0, 3, 1, 2), logsnr, label, w)]
  with torch.no_grad():
    theirs = net(*given).permute(0, 2, 3, 1).numpy()
  np.testing.assert_allclose(ours, theirs, atol=1e-4)
