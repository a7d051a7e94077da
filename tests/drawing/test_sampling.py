"""Tests of the limits of steps and of w, and of the times that diffusers rounds."""

import dataclasses
import re

import numpy as np
import published
import pytest

from gdistill import errors
from gdistill.drawing import sampling
from gdistill.recipe import checks
from gdistill.recipe import settings as recipes
from gdistill.rounds import network as networks


def card(noise, **more):
  model = dataclasses.asdict(recipes.Model(**published.PIXEL))
  return {
    'stage': 'teacher', 'num_steps': 0, 'sampler': 'any', 'model': model,
    'noise': dataclasses.asdict(noise), 'w_max': 0.0, **more,
  }  # fmt: skip


DISCRETE, COSINE = recipes.Noise('scaled_linear'), recipes.Noise('cosine')


@pytest.mark.parametrize('sampler', sampling.SAMPLERS)
def test_a_discrete_schedule_has_as_many_steps_as_betas(sampler):
  sampling.check_steps('round', card(DISCRETE), 1000, sampler)
  words = '--num_steps=1001 must be from 1 to 1000, because the noise schedule scaled_linear of'
  with pytest.raises(errors.ConfigError, match=words):
    sampling.check_steps('round', card(DISCRETE), 1001, sampler)
  sampling.check_steps('round', card(COSINE), 100_000, sampler)
  with pytest.raises(errors.ConfigError, match=r'--num_steps=100001 must be from 1 to 100000$'):
    sampling.check_steps('round', card(COSINE), 100_001, sampler)


def test_two_noise_levels_are_equal_only_with_more_steps_than_betas():
  schedule = networks.noise(DISCRETE)
  for steps, distinct in ((1000, True), (3000, False)):
    logsnr = np.asarray(schedule(np.arange(1, steps + 1, dtype=np.float32) / steps))
    assert (np.diff(logsnr) < 0).all() == distinct


@pytest.mark.parametrize('w', [-1.0, 1000.5, 1e39, float('inf'), float('nan')])
def test_a_w_that_leaves_rounding_errors_alone_is_refused(w):
  words = re.escape(f'--w={w} must be a number of at least 0')
  with pytest.raises(errors.ConfigError, match=words):
    sampling.check_w(f'--w={w}', w, card(COSINE))


def test_the_limits_of_w_are_one_number_and_a_student_keeps_its_own():
  assert sampling.MOST_W == checks.MOST_W
  sampling.check_w('', sampling.MOST_W, card(COSINE))
  sampling.check_w('', 2000.0, card(COSINE, w_max=2000.0))  # trained before there was a limit


def test_the_times_that_diffusers_rounds_are_counted():
  """The second implementation is that of diffusers: timestep_spacing='trailing'."""
  for steps in range(1, 1001):
    exact = np.arange(1000, 0, -1000 / steps)[:steps]
    rounded = np.abs(exact - np.round(exact)) > 1e-6
    said = sampling.rounding(card(DISCRETE), steps)
    assert bool(said) == rounded.any()
    if said:
      first = np.flatnonzero(rounded)[0]
      assert f'{rounded.sum()} of the {steps} timesteps are not whole' in said
      assert f'the first {exact[first] - 1:.2f}: ' in said
      assert f'round it to {int(np.round(exact[first])) - 1},' in said
    assert sampling.rounding(card(COSINE), steps) == ''
