"""Converts diffusers' scheduler_config.json to a recipe's noise schedule, and back."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from gdistill import errors
from gdistill.convert import folding
from gdistill.process import progress
from gdistill.published import source_files
from gdistill.recipe import settings as recipes
from gdistill.rounds import network as networks

DDPM_NOISE = recipes.Noise('linear_beta', beta_start=1e-4, beta_end=0.02)
# Value of model.predict in a recipe -> value of prediction_type in diffusers' schedulers.
PREDICTION_TYPES = {'eps': 'epsilon', 'v': 'v_prediction', 'x': 'sample'}
_PREDICTS = {theirs: ours for ours, theirs in PREDICTION_TYPES.items()}
# Value of beta_schedule in diffusers' schedulers -> value of noise.name in a recipe.
_BETAS = {
  'linear': 'linear_beta', 'scaled_linear': 'scaled_linear', 'squaredcos_cap_v2': 'squared_cosine'
}  # fmt: skip
_BETA_SCHEDULES = {ours: theirs for theirs, ours in _BETAS.items()}


class _Defaults(NamedTuple):
  """Values that a scheduler class assumes for fields that scheduler_config.json lacks."""

  beta_schedule: str | None = 'linear'
  beta_start: float | None = 1e-4
  beta_end: float | None = 0.02
  clip_sample: bool = False
  timestep_spacing: str = 'linspace'
  set_alpha_to_one: bool = True  # also True for classes without this field, which end at x_hat


# Scheduler class of diffusers 0.42.1 -> the defaults in the signature of its __init__. Only the
# betas and prediction_type describe the network; all other fields choose a sampler.
_CLIPS = _Defaults(clip_sample=True, timestep_spacing='leading')
_SIGMAS = _Defaults(beta_start=0.00085, beta_end=0.012)
_LCM = _Defaults('scaled_linear', 0.00085, 0.012, timestep_spacing='leading')
_CLASSES = {
  **dict.fromkeys(
    ('DDIMScheduler', 'DDIMParallelScheduler', 'DDIMInverseScheduler', 'DDPMScheduler',
     'DDPMParallelScheduler', 'RePaintScheduler'), _CLIPS,
  ),
  'PNDMScheduler': _Defaults(timestep_spacing='leading', set_alpha_to_one=False),
  **dict.fromkeys(
    ('LMSDiscreteScheduler', 'EulerDiscreteScheduler', 'EulerAncestralDiscreteScheduler',
     'DPMSolverMultistepScheduler', 'DPMSolverSinglestepScheduler', 'UniPCMultistepScheduler',
     'DPMSolverMultistepInverseScheduler', 'DEISMultistepScheduler', 'SASolverScheduler'),
    _Defaults(),
  ),
  **dict.fromkeys(
    ('HeunDiscreteScheduler', 'KDPM2DiscreteScheduler', 'KDPM2AncestralDiscreteScheduler',
     'DPMSolverSDEScheduler'), _SIGMAS,
  ),
  'LCMScheduler': _LCM, 'TCDScheduler': _LCM,
  'UnCLIPScheduler': _Defaults('squaredcos_cap_v2', None, None, True),
}  # fmt: skip
# A class that is not in the table, such as IPNDMScheduler, must state its betas in the file.
_UNKNOWN = _Defaults(None, None, None)
# Classes of diffusers' schedulers of students: these schedulers take few steps without guidance.
_OF_STUDENTS = ('LCMScheduler', 'TCDScheduler')
# Beginning of a scheduler class -> why gdistill cannot import the network of such a scheduler.
_FLOW = 'is of flow matching: the network predicts the velocity of a path without betas'
_WITHOUT_BETAS = {
  **dict.fromkeys(
    ('FlowMatch', 'FlowMap', 'Helios', 'Piflow', 'LTXEuler', 'MiniMax', 'SCM'), _FLOW
  ),
  **dict.fromkeys(
    ('EDM', 'CosineDPMSolver', 'KarrasVe', 'ScoreSde'),
    'has noise levels sigma and no betas: the network is scaled in another way',
  ),
  **dict.fromkeys(
    ('VQDiffusion', 'Amused', 'BlockRefinement', 'DiscreteDDIM', 'EntropyBound'),
    'is of a network that predicts discrete tokens',
  ),
  **dict.fromkeys(
    ('CMStochastic', 'ConsistencyDecoder'), 'is of a consistency model, which is a student'
  ),
  'CogVideoX': 'is of a video network, whose signal-to-noise ratio is shifted',
  'DDPMWuerstchen': 'has a continuous time and no betas',
}  # fmt: skip
# Field of scheduler_config.json -> the only value that gdistill supports; a field that is null or
# absent is accepted too.
_FIXED = {'num_train_timesteps': 1000, 'use_flow_sigmas': False}
# Pairs (beta_start, beta_end) that published networks were trained with.
_KNOWN_ENDS = ((0.00085, 0.012), (0.0015, 0.0195), (1e-4, 0.02))


def read(folder: pathlib.Path) -> tuple[recipes.Noise, str]:
  """Returns (noise schedule, what the network predicts) from the folder scheduler/ in `folder`.

  Prints a note for each group of fields that diffusers samples by and gdistill does not.
  """
  file = folder / 'scheduler' / 'scheduler_config.json'
  config = source_files.read_json(file)
  found = noise_from(config, str(file))
  for line in notes(config):
    progress.say(f'note: {file}: {line}')
  return found


def noise_from(
  config: Mapping[str, Any], where: str = 'scheduler_config.json'
) -> tuple[recipes.Noise, str]:
  """Returns (noise schedule, what the network predicts) from the config of a diffusers scheduler.

  The class of the scheduler matters only for the betas that the config lacks. Raises ConfigError
  with the name of the first field whose value gdistill does not support. `where` is the name of the
  config in error lines.
  """
  name = config.get('_class_name')
  for begins, reason in _WITHOUT_BETAS.items():
    if isinstance(name, str) and name.startswith(begins):
      raise errors.ConfigError(
        f'{where}: _class_name={name!r} {reason}, so gdistill cannot import it; give another '
        '--source'
      )
  for field, value in _FIXED.items():
    if config.get(field, value) not in (value, None):
      _refuse(where, field, config[field], repr(value))
  kind = config.get('prediction_type', _older_prediction_type(config))
  if kind not in list(_PREDICTS):  # `kind in table` would raise for an unhashable `kind`
    _refuse(where, 'prediction_type', kind, f'one of {", ".join(_PREDICTS)}')
  zero = config.get('rescale_betas_zero_snr')
  if zero not in (None, False, True):
    _refuse(where, 'rescale_betas_zero_snr', zero, 'true or false')
  if config.get('trained_betas') is not None:
    noise = _from_list(config['trained_betas'], bool(zero), where)
  else:
    noise = _from_fields(config, bool(zero), where)
  if noise.zero_terminal_snr and kind == 'epsilon':
    raise errors.ConfigError(
      f"{where}: rescale_betas_zero_snr=True cannot go with prediction_type='epsilon': at the last "
      'timestep the input is pure noise, and its eps says nothing about the picture; give a '
      "network with prediction_type='v_prediction', or correct the file"
    )
  return noise, _PREDICTS[kind]


def _refuse(where: str, field: str, value: Any, remedy: str) -> None:
  raise errors.ConfigError(
    f'{where}: {field}={_short(value)} must be {remedy}; gdistill cannot import a network with '
    f'another {field}; give another --source'
  )


def _short(value: Any) -> str:
  """Returns a value of a JSON file for an error line, cut if the value is a long list."""
  return errors.brief(ValueError(repr(value)), 80)


def _older_prediction_type(config: Mapping[str, Any]) -> str:
  """Returns the prediction type of a config without the field `prediction_type`.

  diffusers up to 0.9 has the field `predict_epsilon` instead.
  """
  return 'sample' if config.get('predict_epsilon') is False else 'epsilon'


def _from_fields(config: Mapping[str, Any], zero: bool, where: str) -> recipes.Noise:
  """Returns the noise schedule of the fields beta_schedule, beta_start and beta_end."""
  defaults = _defaults_of(config)
  found = {f: config.get(f, getattr(defaults, f)) for f in _Defaults._fields[:3]}
  if found['beta_schedule'] == 'squaredcos_cap_v2':  # a schedule that uses neither end
    found |= {f: config.get(f, getattr(_Defaults(), f)) for f in ('beta_start', 'beta_end')}
  for field, value in found.items():
    if field not in config and value is None:
      raise errors.ConfigError(
        f'{where}: {field} is missing, and gdistill knows no default of _class_name='
        f'{_short(config.get("_class_name"))}; add beta_schedule, beta_start and beta_end that the '
        'network was trained with'
      )
  if found['beta_schedule'] not in list(_BETAS):
    _refuse(where, 'beta_schedule', found['beta_schedule'], f'one of {", ".join(_BETAS)}')
  ends = {field: found[field] for field in ('beta_start', 'beta_end')}
  for field, value in ends.items():
    if not (folding.is_share(value) and value > 0):
      raise errors.ConfigError(
        f'{where}: {field}={_short(value)} must be a number between 0 and 1; correct the file, or '
        'download the file again'
      )
  numbers = {field: float(value) for field, value in ends.items()}
  return recipes.Noise(_BETAS[found['beta_schedule']], **numbers, zero_terminal_snr=zero)


def _from_list(betas: Any, zero: bool, where: str) -> recipes.Noise:
  """Returns the noise schedule whose betas are the list `betas`, the field trained_betas.

  Raises ConfigError if `betas` is no list of 1,000 numbers between 0 and 1, or if no noise schedule
  of gdistill has these betas. With `zero`, the betas are rescaled afterwards.
  """
  said = 'trained_betas is no list of 1,000 numbers from 0 to 1'
  if isinstance(betas, (list, tuple)) and len(betas) == 1000:
    if all(folding.is_share(beta) or beta == 1 for beta in betas):
      given = np.asarray(betas, np.float64)
      for noise in _candidates(float(given[0]), float(given[-1])):
        # diffusers stores and computes betas in float32.
        if np.allclose(networks.betas(noise), given, rtol=1e-3, atol=1e-7):
          return dataclasses.replace(noise, zero_terminal_snr=noise.zero_terminal_snr or zero)
      said = f'the 1,000 trained_betas, from {given[0]:.6g} to {given[-1]:.6g},'
      said += ' are not the betas of linear, scaled_linear or squaredcos_cap_v2'
  elif isinstance(betas, (list, tuple)):
    said += f', but of {len(betas):,}'
  raise errors.ConfigError(
    f'{where}: {said}; gdistill cannot import a network with such betas; give another --source'
  )


def _candidates(start: float, end: float) -> Iterator[recipes.Noise]:
  """Yields the noise schedules that a list of betas from `start` to `end` may be."""
  for zero in (False, True):
    for name in ('scaled_linear', 'linear_beta'):
      for ends in _KNOWN_ENDS if zero else ((start, end),):
        if max(ends) < 1:
          yield recipes.Noise(name, beta_start=ends[0], beta_end=ends[1], zero_terminal_snr=zero)
    yield recipes.Noise('squared_cosine', zero_terminal_snr=zero)


def _defaults_of(config: Mapping[str, Any]) -> _Defaults:
  name = config.get('_class_name')
  return _CLASSES.get(name, _UNKNOWN) if isinstance(name, str) else _UNKNOWN


def notes(config: Mapping[str, Any]) -> list[str]:
  """Returns a sentence for each group of fields that diffusers samples by and gdistill does not.

  `config` is the config of a scheduler whose network works on latents.
  """
  name, defaults, lines = config.get('_class_name'), _defaults_of(config), []

  def said(field: str) -> str:
    if field in config:
      return f'{field}={config[field]!r}'
    return f'{field}={getattr(defaults, field)!r} (missing, and the default of {name})'

  clips = [said('clip_sample')] if config.get('clip_sample', defaults.clip_sample) else []
  clips += ['thresholding=True'] if config.get('thresholding') else []
  if clips:
    lines.append(f'{" and ".join(clips)} not used: gdistill never clips x_hat of latents')
  grid = []
  if config.get('timestep_spacing', defaults.timestep_spacing) != 'trailing':
    grid.append(said('timestep_spacing'))
    grid += [said('steps_offset')] if config.get('steps_offset') else []
  if not config.get('set_alpha_to_one', defaults.set_alpha_to_one):
    grid.append(said('set_alpha_to_one'))
  if grid:
    lines.append(
      f'{", ".join(grid)} not used: gdistill samples at t = 1, ..., 1/N and ends at x_hat, as '
      "diffusers does with timestep_spacing='trailing' and set_alpha_to_one=True"
    )
  if name in _OF_STUDENTS:
    lines.append(
      f'{name} is for distilled students of few steps without guidance; the network is read as a '
      'teacher, which is sampled with guidance'
    )
  return lines


def config_from(noise: recipes.Noise, predict: str, clip_sample: bool) -> dict[str, Any]:
  """Returns the config of a DDIMScheduler whose N sampling steps are at t = i/N (trailing spacing).

  A noise schedule that has no name in diffusers is written as a thousand betas
  1 - abar_i / abar_{i-1} with abar_i = sigmoid(logsnr((i + 1) / 1000)), i = 0 to 999. `predict` is
  what the network predicts: 'eps', 'v' or 'x'. If `clip_sample` is True, the scheduler clips x_hat
  to [-1, 1].
  """
  betas: dict[str, Any]
  if noise.name == 'squared_cosine':  # diffusers computes these betas from the name alone
    betas = {'beta_schedule': _BETA_SCHEDULES[noise.name], 'trained_betas': None}
  elif noise.name in _BETA_SCHEDULES:
    betas = {
      'beta_schedule': _BETA_SCHEDULES[noise.name], 'beta_start': noise.beta_start,
      'beta_end': noise.beta_end, 'trained_betas': None,
    }  # fmt: skip
  else:
    t = np.arange(1, 1001, dtype=np.float32) / 1000
    abar = np.asarray(jax.nn.sigmoid(networks.noise(noise)(t)), np.float64)
    before = np.concatenate([[1.0], abar[:-1]])
    betas = {'trained_betas': (1.0 - abar / before).tolist()}
  return {
    '_class_name': 'DDIMScheduler', **betas,
    'num_train_timesteps': 1000, 'timestep_spacing': 'trailing', 'steps_offset': 1,
    'set_alpha_to_one': True, 'prediction_type': PREDICTION_TYPES[predict],
    'clip_sample': clip_sample, 'clip_sample_range': 1.0,
    'rescale_betas_zero_snr': noise.zero_terminal_snr, 'thresholding': False,
  }  # fmt: skip
