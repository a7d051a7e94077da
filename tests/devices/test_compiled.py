"""Tests of programs that are really compiled for chips that are not here; they need libtpu."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from gdistill.cli import config_file
from gdistill.cli import plan_topology
from gdistill.devices import topology as topologies
from gdistill.recipe import reading
from gdistill.training import assemble
from gdistill.training import topology_text

pytestmark = [
  pytest.mark.tpu,
  pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None,
    reason="libtpu is not installed; run: pip install -e '.[tpu]'",
  ),
]
ROOT = pathlib.Path(__file__).parents[2]
# Compiles layers of attention with their gradients for one chip; prints {layer: temporary bytes}.
# The arguments are a topology and a list of layers: batch, queries, keys, heads, channels, dtype.
LAYERS = """
import json, sys
import jax
from jax import numpy as jnp
from gdistill.devices import topology
from gdistill.models import attention

(device,) = topology.devices_of(topology.parse(sys.argv[1]))
here = jax.sharding.SingleDeviceSharding(device)
out = {}
for layer in json.loads(sys.argv[2]):
  b, n, l, h, d, dtype = layer
  q, k, v = (jax.ShapeDtypeStruct((b, m, h, d), dtype, sharding=here) for m in (n, l, l))
  loss = lambda *qkv: attention.attention(*qkv).astype(jnp.float32).sum()
  compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, v).compile()
  out[str(layer)] = compiled.memory_analysis().temp_size_in_bytes
print(json.dumps(out))
"""
# Stable Diffusion's largest layer, on which libtpu crashed when attention was not a kernel; its
# cross-attention; ImageNet 64's; DiT's with heads of 72; an autoencoder's in float32.
SHAPES = {
  (16, 4096, 4096, 8, 40, 'bfloat16'): 0.6e9,
  (16, 4096, 77, 8, 40, 'bfloat16'): 0.3e9,
  (16, 1024, 1024, 6, 64, 'bfloat16'): 0.1e9,
  (16, 256, 256, 16, 72, 'bfloat16'): 0.1e9,
  (1, 4096, 4096, 1, 512, 'float32'): 0.1e9,
}


@pytest.mark.parametrize('name', ['v4:1x1x1', 'v5e:1x1'])
def test_attention_compiles_and_stays_small(name):
  chips = topologies.parse(name)
  done = subprocess.run(
    [sys.executable, '-c', LAYERS, name, json.dumps(list(SHAPES))],
    capture_output=True, text=True, check=False, cwd=ROOT,
    env={**os.environ, **topologies.environment(chips)},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads(done.stdout.splitlines()[-1])
  for shape, most in SHAPES.items():
    assert found[str(list(shape))] <= most, shape


@pytest.mark.parametrize(
  'config, stage, name',
  [('digits', 'guidance', 'v4:2x2x2'), ('stable_diffusion', 'progressive', 'v5e:2x4')],
)
def test_a_tiny_step_holds_no_surprise(monkeypatch, tmp_path, config, stage, name):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  chips = topologies.parse(name)
  overrides = [f'--config.{stage}.batch_size=8', '--config.model.dtype=bfloat16']
  recipe = reading.from_config(config_file.load(f'configs/{config}.py:tiny', overrides))
  run = assemble.Run(recipe, devices=chips.devices)
  found = plan_topology.Compiler(run, chips, 10, 'O0').figures(stage)
  assert 'memory' in found, found
  assert found['donated'] == found['state'] > 100 and found['callbacks'] == 0
  assert 'float32 x bfloat16' not in found['products']
  assert found['products']['bfloat16'] > 50
  # The gradient, the loss and the norms are reduced together, over all eight chips.
  assert {(c['kind'], c['axis']) for c in found['collectives']} == {('all-reduce', 'data')}
  assert sum(c['count'] for c in found['collectives']) <= 2
  text = topology_text.describe({stage: found}, run.plan, chips, 0.4)
  assert f'{stage:16}   yes' in text
