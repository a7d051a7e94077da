"""Tests that no loss or sampler uses a random key twice."""

import jax
import micro
import numpy as np
import pytest

from gdistill.drawing import sampling
from gdistill.rounds import folder as folders
from gdistill.rounds import network as networks
from gdistill.training import assemble
from gdistill.training import losses as stage_losses

pytestmark = pytest.mark.full

CASES = {
  'teacher': {},
  'teacher, dropout and flips': dict(model=dict(dropout=0.1), data=dict(flip=True)),
  'guidance': {},
  'guidance, trajectory': dict(guidance=dict(state='trajectory', trajectory_steps=2)),
  'progressive': {},
  'progressive, stochastic': dict(progressive=dict(sampler='stochastic')),
  'encoder': dict(encoder=True),
  'guidance, inpainting': dict(model=dict(extra_channels=2)),
}


@pytest.fixture(autouse=True)
def checked():
  with jax.debug_key_reuse(True):
    yield


def test_a_reuse_is_found():
  with pytest.raises(jax.errors.KeyReuseError):
    jax.jit(lambda key: jax.random.normal(key) + jax.random.normal(key))(jax.random.key(0))


@pytest.mark.parametrize('case', CASES)
def test_a_loss_uses_every_key_once(case):
  stage, recipe = case.split(',')[0], micro.recipe(**CASES[case])
  takes_w = recipe.takes_w and stage != 'teacher'
  net = networks.build(recipe.model, takes_w, noise_settings=recipe.noise)
  params = networks.initial_params(net, recipe.model, jax.random.key(0))
  teacher = params
  if stage == 'guidance':
    teacher = networks.initial_params(
      networks.build(recipe.model, False, noise_settings=recipe.noise),
      recipe.model,
      jax.random.key(0),
    )
  size = recipe.model.image_size
  batch = {
    'pixels': np.zeros((4, size, size, 1), np.uint8), 'label': np.arange(4, dtype=np.int32),
    'id': np.arange(4, dtype=np.int32),
  }  # fmt: skip
  loss = stage_losses.loss_of(assemble.setup_of(recipe, stage))
  found = jax.jit(lambda key: loss(params, teacher, batch, key, 4))(jax.random.key(1))
  assert found.shape == (4,) and np.isfinite(found).all()


@pytest.mark.parametrize('sampler', ['ddim', 'stochastic', 'ancestral', 'dpm_solver'])
def test_a_sampler_uses_every_key_once(undisturbed, sampler):
  folder = folders.read_folder(undisturbed / '01_guidance')
  draw = sampling.Sampler(folder, sampler, 4)
  count = np.arange(4)
  pixels = draw(count.astype(np.uint32), count.astype(np.int32), np.ones(4, np.float32), 2)
  assert len(pixels) == 4
