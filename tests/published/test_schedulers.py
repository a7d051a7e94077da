"""A scheduler's config is read as a noise schedule, and written as the schedule that it was."""

import numpy as np
import pytest

from gdistill import errors
from gdistill.published import schedulers
from gdistill.recipe import settings as recipes
from gdistill.rounds import network as networks

pytestmark = pytest.mark.full

DDIM = dict(_class_name='DDIMScheduler')


@pytest.mark.parametrize(
  ('config', 'noise', 'predict'),
  [
    (DDIM, recipes.Noise('linear_beta', beta_start=1e-4, beta_end=0.02), 'eps'),
    (
      dict(_class_name='PNDMScheduler', beta_schedule='scaled_linear', beta_start=0.00085,
           beta_end=0.012, prediction_type='v_prediction', trained_betas=None, steps_offset=1),
      recipes.Noise('scaled_linear', beta_start=0.00085, beta_end=0.012), 'v',
    ),
    (
      dict(_class_name='EulerDiscreteScheduler', beta_schedule='squaredcos_cap_v2',
           prediction_type='sample', use_karras_sigmas=True, num_train_timesteps=1000),
      recipes.Noise('squared_cosine', beta_start=1e-4, beta_end=0.02), 'x',
    ),
  ],
)  # fmt: skip
def test_a_scheduler_says_the_noise_and_what_is_predicted(config, noise, predict):
  assert schedulers.noise_from(config) == (noise, predict)


@pytest.mark.parametrize(
  ('more', 'words'),
  [
    (
      dict(_class_name='FlowMatchEulerDiscreteScheduler'),
      "'FlowMatch.* is not a supported scheduler",
    ),
    (dict(_class_name=None), 'must be one of DDIMScheduler, DDPM'),
    (dict(num_train_timesteps=4000), 'num_train_timesteps=4000 must be 1000'),
    (dict(trained_betas=[0.1, 0.2]), r'trained_betas=\[0.1, 0.2\] must be None'),
    (dict(rescale_betas_zero_snr=True), 'rescale_betas_zero_snr=True must be False'),
    (dict(use_flow_sigmas=True), 'use_flow_sigmas=True must be False'),
    (dict(beta_start=None), 'beta_start=None must be a number between 0 and 1'),
    (dict(beta_end=1.5), 'beta_end=1.5 must be a number between 0 and 1'),
    (dict(beta_end='0.02'), "beta_end='0.02' must be a number between 0 and 1"),
    (dict(prediction_type=['epsilon']), r"prediction_type=\['epsilon'\] must be one of epsilon, "),
    (dict(beta_schedule='sigmoid'), "beta_schedule='sigmoid' must be one of linear, "),
    (dict(prediction_type='flow'), "prediction_type='flow' must be one of epsilon, "),
  ],
)
def test_a_scheduler_that_there_is_no_place_for_is_refused_by_name(more, words):
  with pytest.raises(errors.ConfigError, match=rf'^here: .*{words}'):
    schedulers.noise_from({**DDIM, **more}, 'here')


@pytest.mark.parametrize(
  'noise',
  [
    recipes.Noise('scaled_linear'), recipes.Noise('squared_cosine'),
    recipes.Noise('linear_beta', beta_start=1e-4, beta_end=0.02),
  ],
  ids=lambda noise: noise.name,
)  # fmt: skip
def test_the_scheduler_of_an_export_is_read_as_the_noise_it_was(noise):
  found = schedulers.config_from(noise, 'v', clip_sample=False)
  read, predict = schedulers.noise_from(found)
  np.testing.assert_allclose(networks.betas(read), networks.betas(noise), rtol=1e-12)
  assert predict == 'v' and found['timestep_spacing'] == 'trailing' and not found['clip_sample']


def test_the_betas_of_a_cosine_are_its_levels_at_whole_indices():
  found = schedulers.config_from(recipes.Noise('cosine'), 'v', clip_sample=True)
  abar = np.cumprod(1.0 - np.array(found['trained_betas']))
  b = np.arctan(np.exp(-10.0))  # phi = b + (pi/2 - 2 b) t
  alpha = np.cos(b + (0.5 * np.pi - 2.0 * b) * np.arange(1, 1001) / 1000)
  np.testing.assert_allclose(np.sqrt(abar), alpha, rtol=2e-5)
  assert found['clip_sample'] and found['prediction_type'] == 'v_prediction'
