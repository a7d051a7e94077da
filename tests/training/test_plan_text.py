"""Tests of the text of --plan."""

import dataclasses
import subprocess
import sys

import disturbed
import micro
import pytest

from gdistill import errors
from gdistill.cli import train
from gdistill.training import assemble
from gdistill.training import checks as run_checks
from gdistill.training import plan_text


def test_the_plan_lists_an_encoders_rounds_and_their_batches_are_checked():
  recipe = micro.recipe(
    stages=(), initial='/elsewhere/01_guidance', encoder=True, progressive={'batch_size': 8}
  )
  run = assemble.Run(recipe)
  run_checks.mesh(run)
  text = plan_text.describe(run.plan, run.setups, run.student_shapes, run.mesh)
  lines = text.splitlines()
  row = next(line for line in lines if line.startswith('01_encoder_1'))
  assert row.split()[1:] == ['9', '0.0005', '8', '72', '00_encoder_2']
  assert any(line.startswith('encoder ') and line.split()[-1] == '8' for line in lines)
  assert 'compiled train steps: 1 (encoder), each once for its rounds' in lines
  with pytest.raises(errors.ConfigError, match=r'progressive\.batch_size=8'):
    run_checks.mesh(assemble.Run(recipe, devices=3))
  with pytest.raises(errors.DataError, match='a training batch needs 2048'):
    large = dataclasses.replace(recipe.progressive, batch_size=2048)
    run_checks.data(assemble.Run(dataclasses.replace(recipe, progressive=large)))


def test_a_plan_for_devices_that_are_not_here_starts_none():
  code = (
    'import sys\n'
    'from jax._src import xla_bridge\n'
    'from gdistill.cli import train\n'
    'code = train.main(sys.argv[1:])\n'
    'sys.exit(code or len(xla_bridge._backends))\n'
  )
  flags = ['--config=configs/digits.py', '--plan', '--devices=8']
  done = subprocess.run([sys.executable, '-c', code, *flags], cwd=disturbed.ROOT, check=False)
  assert done.returncode == 0


def test_a_plan_without_a_workdir_may_name_the_round_that_its_teacher_starts_from(undisturbed):
  config = undisturbed / 'config.json'
  flags = [f'--config={config}', '--plan', f'--config.initial={undisturbed}/00_teacher']
  assert train.main(flags) == 0
