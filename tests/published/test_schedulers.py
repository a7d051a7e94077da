"""A scheduler's config is read as a noise schedule, and written as the schedule that it was."""

import re

import numpy as np
import pytest

from gdistill import errors
from gdistill.published import schedulers
from gdistill.recipe import settings as recipes
from gdistill.rounds import network as networks

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
      dict(_class_name='KDPM2DiscreteScheduler', prediction_type='v_prediction'),
      recipes.Noise('linear_beta', beta_start=0.00085, beta_end=0.012), 'v',
    ),
    (
      dict(_class_name='TCDScheduler'),
      recipes.Noise('scaled_linear', beta_start=0.00085, beta_end=0.012), 'eps',
    ),
    (
      dict(_class_name='DDIMParallelScheduler', beta_end=0.03, predict_epsilon=False),
      recipes.Noise('linear_beta', beta_start=1e-4, beta_end=0.03), 'x',
    ),
    (
      dict(_class_name='IPNDMScheduler', beta_schedule='scaled_linear', beta_start=0.0015,
           beta_end=0.0195),
      recipes.Noise('scaled_linear', beta_start=0.0015, beta_end=0.0195), 'eps',
    ),
    (
      dict(_class_name='MyOwnScheduler', beta_schedule='squaredcos_cap_v2', beta_start=1e-4,
           beta_end=0.02, prediction_type='sample'),
      recipes.Noise('squared_cosine', beta_start=1e-4, beta_end=0.02), 'x',
    ),
    (
      dict(_class_name='DDIMScheduler', rescale_betas_zero_snr=True,
           prediction_type='v_prediction'),
      recipes.Noise('linear_beta', beta_start=1e-4, beta_end=0.02, zero_terminal_snr=True), 'v',
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
      "_class_name='FlowMatch.* is of flow matching: the network predicts the velocity",
    ),
    (dict(_class_name='EDMEulerScheduler'), 'has noise levels sigma and no betas'),
    (dict(_class_name='CogVideoXDDIMScheduler'), 'is of a video network'),
    (dict(_class_name='VQDiffusionScheduler'), 'predicts discrete tokens'),
    (dict(_class_name=None), 'beta_schedule is missing, and gdistill knows no default of _class_n'),
    (dict(_class_name=['a', 'B']), 'beta_schedule is missing'),
    (dict(_class_name='IPNDMScheduler'), "beta_schedule is missing.*'IPNDMScheduler'; add beta_s"),
    (dict(_class_name='IPNDMScheduler', beta_schedule='linear'), 'beta_start is missing'),
    (dict(num_train_timesteps=4000), 'num_train_timesteps=4000 must be 1000'),
    (dict(trained_betas=[0.1, 0.2]), 'trained_betas is no list of 1,000 numbers.*, but of 2; gd'),
    (dict(trained_betas=[0.5] * 1001), 'trained_betas is no list of 1,000 numbers.*, but of 1,001'),
    (dict(trained_betas='a.json'), 'trained_betas is no list of 1,000 numbers from 0 to 1; gd'),
    (dict(trained_betas=[0.5] * 999 + [1.5]), 'trained_betas is no list of 1,000 numbers from 0'),
    (
      dict(trained_betas=np.linspace(0.1, 0.2, 1000)[::-1].round(1).tolist()),
      'the 1,000 trained_betas, from 0.2 to 0.1, are not the betas of linear, scaled_linear or squ',
    ),
    (
      dict(rescale_betas_zero_snr=True),
      "rescale_betas_zero_snr=True cannot go with prediction_type='epsilon': at the last timestep",
    ),
    (dict(rescale_betas_zero_snr='yes'), "rescale_betas_zero_snr='yes' must be true or false"),
    (dict(use_flow_sigmas=True), 'use_flow_sigmas=True must be False'),
    (dict(beta_start=None), 'beta_start=None must be a number between 0 and 1'),
    (dict(beta_start=[0.1] * 1000), r'beta_start=\[0.1, .*\] must be a number between 0 and 1'),
    (dict(beta_schedule=[0.1] * 1000), r'beta_schedule=\[0.1, .*\] must be one of linear'),
    (dict(beta_end=1.5), 'beta_end=1.5 must be a number between 0 and 1'),
    (dict(beta_end='0.02'), "beta_end='0.02' must be a number between 0 and 1"),
    (dict(prediction_type=['epsilon']), r"prediction_type=\['epsilon'\] must be one of epsilon, "),
    (dict(beta_schedule='sigmoid'), "beta_schedule='sigmoid' must be one of linear, "),
    (dict(prediction_type='flow'), "prediction_type='flow' must be one of epsilon, "),
  ],
)
def test_a_scheduler_that_there_is_no_place_for_is_refused_by_name(more, words):
  with pytest.raises(errors.ConfigError, match=rf'^here: .*{words}') as e:
    schedulers.noise_from({**DDIM, **more}, 'here')
  assert len(str(e.value)) < 400


@pytest.mark.parametrize(
  'noise',
  [
    recipes.Noise('scaled_linear'),
    recipes.Noise('linear_beta', beta_start=0.001, beta_end=0.03),
    recipes.Noise('squared_cosine'),
    recipes.Noise('scaled_linear', zero_terminal_snr=True),
    recipes.Noise('squared_cosine', zero_terminal_snr=True),
  ],
)
def test_a_list_of_betas_is_read_as_the_schedule_that_has_these_betas(noise):
  betas = networks.betas(noise).astype(np.float32).tolist()
  config = {**DDIM, 'trained_betas': betas, 'prediction_type': 'v_prediction', 'beta_end': 0.9}
  found, _ = schedulers.noise_from(config)
  np.testing.assert_allclose(networks.betas(found), betas, rtol=1e-3)
  assert (found.name, found.zero_terminal_snr) == (noise.name, noise.zero_terminal_snr)


def test_a_list_of_betas_is_rescaled_if_the_config_says_so():
  betas = networks.betas(recipes.Noise('scaled_linear')).tolist()
  config = {**DDIM, 'trained_betas': betas, 'prediction_type': 'v_prediction'}
  for rescaled in (False, True):
    found, _ = schedulers.noise_from({**config, 'rescale_betas_zero_snr': rescaled})
    assert (found.name, found.zero_terminal_snr) == ('scaled_linear', rescaled)


TRAILING = dict(timestep_spacing='trailing', clip_sample=False)


@pytest.mark.parametrize(
  ('config', 'words'),
  [
    (DDIM | TRAILING, []),
    (
      DDIM | dict(timestep_spacing='trailing'),
      [r'^clip_sample=True \(missing, and the default of DDIMScheduler\) not used: .* never clips'],
    ),
    (DDIM | TRAILING | dict(clip_sample=True), ['^clip_sample=True not used']),
    (dict(_class_name='EulerDiscreteScheduler', timestep_spacing='trailing'), []),
    (dict(TRAILING, _class_name='DDPMScheduler', thresholding=True), ['^thresholding=True not u']),
    (DDIM | TRAILING | dict(timestep_spacing=None, steps_offset=1), ['^timestep_spacing=None, st']),
    (
      dict(_class_name='PNDMScheduler', clip_sample=True, thresholding=True, steps_offset=1),
      ['^clip_sample=True and thresholding=True not used',
       r"^timestep_spacing='leading' \(missing, and the default of PNDMScheduler\), steps_offset="
       '1, set_alpha_to_one=False .* not used: gdistill samples at t = 1, ..., 1/N'],
    ),
    (dict(TRAILING, _class_name='LCMScheduler'), ['^LCMScheduler is for distilled students']),
  ],
)  # fmt: skip
def test_what_a_scheduler_samples_by_and_gdistill_does_not_is_said(config, words):
  found = schedulers.notes(config)
  assert len(found) == len(words)
  for line, word in zip(found, words, strict=True):
    assert re.search(word, line), line


@pytest.mark.parametrize(
  'noise',
  [
    recipes.Noise('scaled_linear'), recipes.Noise('squared_cosine'),
    recipes.Noise('linear_beta', beta_start=1e-4, beta_end=0.02),
    recipes.Noise('scaled_linear', zero_terminal_snr=True),
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
