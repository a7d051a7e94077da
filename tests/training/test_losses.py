"""Tests of the losses as a recipe sets them up: settings, images and conditions reach the stage."""

import importlib
import pathlib

import jax
import latent_runs
import micro
import numpy as np
import pytest

from gdistill.core import projections
from gdistill.rounds import network as networks
from gdistill.stages import progressive
from gdistill.training import assemble
from gdistill.training import losses as stage_losses

TEXT = 'photos_latent.py:text_tiny'
NOWHERE = pathlib.Path('/nowhere')  # no network is read to set up the loss of a latent run


def loss_of(recipe, stage):
  return stage_losses.loss_of(assemble.setup_of(recipe, stage))


@pytest.mark.parametrize('stage', ['guidance', 'progressive', 'encoder'])
def test_the_settings_of_a_loss_reach_it(monkeypatch, stage):
  given = {}
  module = importlib.import_module(f'gdistill.stages.{stage}')
  monkeypatch.setattr(module, 'loss', lambda *args, **settings: given.update(settings))
  section = 'progressive' if stage == 'encoder' else stage
  settings = {'w_power': 1.5, 'clip_x_hat': True, 'weight': 'snr_plus_one', 'state': 'trajectory'}
  recipe = micro.recipe(**{section: settings}, encoder=True)
  net = networks.build(recipe.model, True)
  params = networks.initial_params(net, recipe.model, jax.random.key(0))
  batch = {'pixels': np.zeros((2, 8, 8, 1), np.uint8), 'label': np.zeros(2, np.int32)}
  batch['id'] = np.arange(2, dtype=np.int32)
  loss_of(recipe, stage)(params, params, batch, jax.random.key(1), 4)
  assert given['w_power'] == 1.5 and given['weight'] == 'snr_plus_one'
  assert given['loss_project'] is projections.clip
  assert (given['w_min'], given['w_max']) == (0.0, 4.0)
  assert given['project'] is projections.clip
  assert given.get('on_trajectory', True) and given.get('num_steps', 4) == 4


@pytest.mark.parametrize('stage', ['guidance', 'progressive'])
def test_no_loss_projects_latents(monkeypatch, stage):
  seen = {}
  module = importlib.import_module(f'gdistill.stages.{stage}')
  monkeypatch.setattr(module, 'loss', lambda s, t, batch, key, **more: seen.update(more, **batch))
  recipe = latent_runs.recipe(TEXT, NOWHERE)
  batch = {
    'latents': np.full((2, 2, 1, 8, 8, 32), 3.0, np.float32), 'label': np.zeros(2, np.int32),
    'text': np.ones((2, 9, 32), np.float32), 'text_mask': np.ones((2, 9), bool),
    'id': np.arange(2, dtype=np.int32),
  }  # fmt: skip
  loss_of(recipe, stage)({}, {}, batch, jax.random.key(1), 4)
  assert seen['project'] is None and seen['loss_project'] is None
  np.testing.assert_array_equal(seen['x'], np.full((2, 8, 8, 32), 3.0))
  assert seen['cond'].keys() == {'label', 'text', 'text_mask'}


def test_what_is_known_belongs_to_the_flip_that_is_drawn(monkeypatch):
  seen = {}
  monkeypatch.setattr(progressive, 'loss', lambda s, t, batch, key, **_: seen.update(batch))
  recipe = latent_runs.recipe(TEXT, NOWHERE, model=dict(extra_channels=33))
  count, rng = 40, np.random.default_rng(0)
  latents = rng.normal(size=(count, 2, 1, 8, 8, 32)).astype(np.float32)
  masked = np.zeros((count, 2, 3, 8, 8, 33), np.float32)
  masked[..., 0] = np.arange(3)[None, None, :, None, None]  # the number of the mask
  masked[..., 1:] = latents
  batch = {
    'latents': latents, 'masked': masked, 'label': np.zeros(count, np.int32),
    'id': np.arange(count, dtype=np.int32), 'text': np.ones((count, 9, 32), np.float32),
  }  # fmt: skip
  loss_of(recipe, 'progressive')({}, {}, batch, jax.random.key(1), 4)
  x, extra = np.asarray(seen['x']), np.asarray(seen['cond']['extra'])
  np.testing.assert_array_equal(extra[..., 1:], x)
  flips = [(x == latents[:, flip, 0]).all((1, 2, 3)) for flip in (0, 1)]
  assert (flips[0] != flips[1]).all() and 10 < flips[0].sum() < 30
  assert {0.0, 1.0, 2.0} == set(extra[:, 0, 0, 0])
