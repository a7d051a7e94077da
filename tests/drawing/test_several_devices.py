"""What draws, edits, encodes and measures on two devices: each device computes its own rows."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# Every program is also lowered for TPU, with a kernel of attention for maps of every size: XLA
# cannot partition such a kernel, and so refuses a program in which it would have to.
TWO_DEVICES = """
import pathlib, sys
import jax
jax.config.update('jax_num_cpu_devices', int(sys.argv[1]))
import latent_runs
import micro
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from gdistill.drawing import editor, sampling
from gdistill.evaluation.features import extractors
from gdistill.frozen import encode, networks as frozen_networks
from gdistill.models import attention
from gdistill.rounds import folder as folders, network as networks
from gdistill.workdir import storage

attention._FEWEST = 1
lowered = []

class Jitted:
  def __init__(self, function, **more):
    self.jitted, self.name = real(function, **more), getattr(function, '__name__', '')

  def lower(self, *args):
    # The rows of batches that come from the host are on one device.
    text = self.jitted.trace(*args).lower(lowering_platforms=('tpu',)).as_text()
    lowered.append((self.name, 'tpu_custom_call' in text))
    return self.jitted.lower(*args)

  def __call__(self, *args):
    return self.lower(*args).compile()(*args)

real, jax.jit = jax.jit, Jitted
recipe = micro.recipe()
net = networks.build(recipe.model, True)
params = real(lambda key: networks.initial_params(net, recipe.model, key))(jax.random.key(0))
params = jax.tree.map(lambda a: a + 0.01, params)
card = {'guided': False, 'takes_w': True, 'num_steps': 2, 'stage': 'guidance'}
folder = folders.Folder(storage.path('.'), card, recipe.model, recipe.noise, net, params)
seeds, labels, w = np.arange(4), np.arange(4), np.ones(4)
pixels, x = sampling.Sampler(folder, 'ddim', 4).draw_both(seeds, labels, w, 2)
rows = {'pixels': np.asarray(pixels), 'seeds': seeds.astype(np.uint32), 'w': w.astype(np.float32),
        'labels': labels.astype(np.int32), 'mask': np.ones((4, 8, 8, 1), np.float32)}
counts = {'num_steps': 2, 'start': 1}
frozen = frozen_networks.Frozen()
edited = editor.editor(folder, frozen, 4)(rows, counts)
painted = editor.painter(folder, frozen, 4, True)(rows, {'num_steps': 2})
kl = latent_runs.autoencoder('kl')
settings = latent_runs.recipe('stable_diffusion.py:tiny', pathlib.Path('.')).latents
encoder = encode._encoder(kl, (16, 16, 3), settings, True)
pictures = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
latents = encoder.encode(pictures)
masked = encoder.masked(pictures, np.arange(8))

def features(params, pixels):
  a = pixels.astype(np.float32).reshape(len(pixels), -1, 1, 3) / 255 * params
  return {'mean': attention.attention(a, a, a).mean((1, 2))}

extractor = extractors.Extractor(
  'x', 'FD', features, np.float32(2), '', {}, 'mean', 3
)
found = extractors.extract(extractor, pictures)
want = {'draw', 'encode', 'masked', '_outputs'}
assert want <= {name for name, kernel in lowered if kernel}, lowered
flat = [np.asarray(a, np.float64).ravel() for a in jax.tree.leaves(
  (pixels, x, edited, painted, latents, masked, found))]
np.save(sys.argv[2], np.concatenate(flat))
"""


@pytest.mark.full
def test_two_devices_make_what_one_makes_and_a_tpu_has_nothing_to_partition(tmp_path):
  import numpy as np

  found = []
  for count in (1, 2):
    file = tmp_path / f'{count}.npy'
    done = subprocess.run(
      [sys.executable, '-c', TWO_DEVICES, str(count), str(file)],
      cwd=ROOT, capture_output=True, text=True, check=False,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': f'{ROOT}/tests/support:{ROOT}'},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found.append(np.load(file))
  np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)
