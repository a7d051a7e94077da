"""A finished round as a folder that diffusers opens, and back, bit for bit.

  model_index.json, unet/, scheduler/    what a pipeline loads; vae/, text_encoder/, tokenizer/ too
  README.md                              licence, what w is, and how many steps it was taught
  gdistill/                              the card, and what diffusers' names have no place for

Networks are written in their own float32 names; see convert/stable_diffusion_unet.py and
convert/pixel_unet.py.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from gdistill import errors
from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import files
from gdistill.convert import pixel_unet
from gdistill.convert import stable_diffusion_unet as unet2d
from gdistill.convert import text as texts
from gdistill.drawing import sampling
from gdistill.frozen import networks as frozen_networks
from gdistill.published import common
from gdistill.rounds import folder as folders
from gdistill.rounds import network as networks

OWN = 'gdistill'
_CARD, _REST = f'{OWN}/card.json', f'{OWN}/rest.safetensors'
_WEIGHTS = 'diffusion_pytorch_model.safetensors'
_VERSION = '0.42.1'  # of the diffusers that the folders were opened with
_PREDICTS = {'eps': 'epsilon', 'v': 'v_prediction', 'x': 'sample'}
_VAES = {'kl': 'AutoencoderKL', 'vq': 'VQModel', 'tiny': 'AutoencoderTiny'}
_BETAS = {'linear_beta': 'linear', 'scaled_linear': 'scaled_linear'}


def run(folder: folders.Folder, out: pathlib.Path, licence: str = '') -> list[str]:
  """Writes the folder; returns lines that the user should see. ConfigError where it cannot be."""
  frozen = frozen_networks.read_frozen(folder)
  _check(folder, frozen)
  config, state, back = _network(folder)
  card = {**folder.card, 'licence': licence} if licence else folder.card
  out.mkdir(parents=True, exist_ok=True)
  _save(out / 'unet', config, state)
  _write_json(out / 'scheduler' / 'scheduler_config.json', scheduler(folder))
  rest = _rest(folder.params, back)
  if frozen.text is not None:
    texts.write(os.fspath(out), frozen.text)
    _as_float32(out / 'text_encoder')
  if frozen.autoencoder is not None:
    autoencoders.write(out / 'vae', frozen.autoencoder)
  _write_json(out / 'model_index.json', _index(folder, frozen))
  (out / OWN).mkdir(exist_ok=True)
  _save_arrays(out / _REST, rest)
  _write_json(out / _CARD, card)
  (out / 'README.md').write_text(_readme(folder, frozen, licence), encoding='utf-8')
  return _notes(folder, frozen)


def read(path: pathlib.Path) -> tuple[dict[str, Any], dict, autoencoders.Autoencoder | None, Any]:
  """(card, params, autoencoder, text encoder) of a folder that `run` wrote."""
  card = common.read_json(path / _CARD)
  try:
    settings, noise = folders.settings_of(card)
    config = common.read_json(path / 'unet' / 'config.json')
    state = files.weights(path / 'unet' / _WEIGHTS)
    if unet2d.CLASSES in (rest := files.weights(path / _REST)):
      state[unet2d.CLASSES] = rest.pop(unet2d.CLASSES)
    if settings.network == 'unet':
      params = pixel_unet.params_from(config, state)
    else:
      params = unet2d.params_from(
        state, networks.build(settings, card['takes_w'], noise_settings=noise)
      )
  except (KeyError, TypeError) as e:
    raise errors.DataError(f'{path} lacks or misnames {e}; export it again') from e
  flat = traverse_util.flatten_dict(params, sep='/') | rest
  text = None
  latents = card.get('latents')
  if latents and latents['text']:
    text = texts.read(os.fspath(path), latents['text_length'])
  found = autoencoders.read(path / 'vae') if latents else None
  return card, traverse_util.unflatten_dict(flat, sep='/'), found, text


def exported(path: pathlib.Path) -> bool:
  """Whether `run` wrote it."""
  return (path / _CARD).is_file()


def scheduler(folder: folders.Folder) -> dict[str, Any]:
  """scheduler_config.json: DDIM over t = i/N, which is what diffusers calls trailing spacing."""
  noise = folder.noise
  betas: dict[str, Any]
  if noise.name in _BETAS:
    betas = {
      'beta_schedule': _BETAS[noise.name], 'beta_start': noise.beta_start,
      'beta_end': noise.beta_end, 'trained_betas': None,
    }  # fmt: skip
  elif noise.name == 'squared_cosine':
    betas = {'beta_schedule': 'squaredcos_cap_v2', 'trained_betas': None}
  else:
    t = np.arange(1, 1001, dtype=np.float32) / 1000
    abar = np.asarray(jax.nn.sigmoid(networks.noise(noise)(t)), np.float64)
    before = np.concatenate([[1.0], abar[:-1]])
    betas = {'trained_betas': (1.0 - abar / before).tolist()}
  pixels = not folder.card.get('latents')
  return {
    '_class_name': 'DDIMScheduler', '_diffusers_version': _VERSION, **betas,
    'num_train_timesteps': 1000, 'timestep_spacing': 'trailing', 'steps_offset': 1,
    'set_alpha_to_one': True, 'prediction_type': _PREDICTS[folder.card['predict']],
    'clip_sample': pixels, 'clip_sample_range': 1.0, 'rescale_betas_zero_snr': False,
    'thresholding': False,
  }  # fmt: skip


def _check(folder: folders.Folder, frozen: frozen_networks.Frozen) -> None:
  settings, card = folder.settings, folder.card
  sampling.check_draws(folder.path, card)
  if settings.network == 'dit':
    raise errors.ConfigError(
      f"{folder.path}: diffusers' DiT has no input for w, and no pipeline for its students"
    )
  if settings.network == 'latent_unet' and settings.time != 'index':
    raise errors.ConfigError(
      f"{folder.path}: model.time={settings.time!r} must be 'index', with a discrete noise: "
      "diffusers' networks see an index"
    )
  if settings.network == 'unet' and (settings.time, folder.noise.name) != ('phi', 'cosine'):
    raise errors.ConfigError(
      f"{folder.path}: a U-Net of pixels can be written with model.time='phi' and noise.name="
      f"'cosine', not with {settings.time!r} and {folder.noise.name!r}"
    )
  if settings.extra_channels not in (0, settings.image_channels + 1):
    raise errors.ConfigError(
      f'{folder.path}: model.extra_channels={settings.extra_channels} is what no pipeline here '
      f'gives; inpainting has {settings.image_channels + 1}, a mask and a picture'
    )
  if card.get('sampler') == 'stochastic':
    raise errors.ConfigError(
      f'{folder.path} was distilled for the stochastic sampler, which diffusers does not have; '
      'export a student of progressive.sampler=deterministic'
    )
  if settings.predict not in _PREDICTS:
    raise errors.ConfigError(f'{folder.path}: predict={settings.predict!r} is not in diffusers')
  if frozen.text is not None and frozen.text.kind != 'clip':
    raise errors.ConfigError(
      f'{folder.path} reads text by a {frozen.text.kind} encoder with masked padding, and '
      "diffusers' pipelines mask none; export a network of CLIP's text encoder"
    )
  if frozen.text is not None:
    _check_length(folder, frozen.text)


def _check_length(folder: folders.Folder, text: texts.TextEncoder) -> None:
  most = frozen_networks.text_encoder(frozen_networks.beside(folder, ''), 0).length
  if text.length != most:
    raise errors.ConfigError(
      f'{folder.path} reads {text.length} tokens of a prompt, and diffusers fills every prompt up '
      f"to its tokenizer's {most}; distil with latents.text_length=0"
    )


def _network(folder: folders.Folder) -> tuple[dict[str, Any], dict[str, np.ndarray], dict]:
  """(config, arrays by diffusers' names, the parameters that these give back)."""
  settings = folder.settings
  params = jax.tree.map(np.asarray, folder.params)
  if settings.network == 'unet':
    config, state = pixel_unet.state_from(params, settings)
    return config, state, pixel_unet.params_from(config, state)
  config = unet2d.config_from(folder.net, settings.image_size)
  state = unet2d.state_from(params, folder.net)
  back = unet2d.params_from(state, folder.net)
  state.pop(unet2d.CLASSES, None)  # which is written among the rest
  return config, state, back


def _rest(params: Mapping, back: Mapping) -> dict[str, np.ndarray]:
  """What reading the arrays back would not give bit for bit."""
  mine, theirs = (traverse_util.flatten_dict(p, sep='/') for p in (params, back))
  rest = {k: np.asarray(v) for k, v in mine.items() if not _equal(v, theirs.get(k))}
  if 'class_table' in mine:
    rest[unet2d.CLASSES] = np.asarray(mine['class_table'])
  return rest


def _equal(a: Any, b: Any) -> bool:
  return b is not None and np.array_equal(np.asarray(a), np.asarray(b))


def _index(folder: folders.Folder, frozen: frozen_networks.Frozen) -> dict[str, Any]:
  """model_index.json; a network that no pipeline of diffusers runs lists its parts alone."""
  parts = {
    'unet': ['diffusers', 'UNet2DConditionModel'],
    'scheduler': ['diffusers', 'DDIMScheduler'],
  }
  if frozen.autoencoder is not None:
    parts['vae'] = ['diffusers', _VAES[frozen.autoencoder.kind]]
  name = 'DiffusionPipeline'
  if frozen.text is not None:
    parts['text_encoder'] = ['transformers', 'CLIPTextModel']
    parts['tokenizer'] = ['transformers', 'CLIPTokenizer']
    parts |= {'safety_checker': [None, None], 'feature_extractor': [None, None]}
    kind = 'Inpaint' if folder.settings.extra_channels else ''
    name = f'StableDiffusion{kind}Pipeline'
  index = {'_class_name': name, '_diffusers_version': _VERSION, **parts}
  return index | ({'requires_safety_checker': False} if frozen.text is not None else {})


def _readme(folder: folders.Folder, frozen: frozen_networks.Frozen, licence: str) -> str:
  card, text = folder.card, frozen.text is not None
  steps = card['num_steps'] or 'any number of'
  scale = 1.0 + min(max(6.5, card['w_min']), card['w_max'])
  dial = 'pass `guidance_scale = 1 + w`' if text else 'set `w` below'
  if card['takes_w']:
    dial = (
      f'It takes w, from {card["w_min"]:g} to {card["w_max"]:g}, as an input: {dial}. w = 0 is no '
      f'guidance. One call of the network a step{"; a negative prompt does nothing" * text}.'
    )
  elif card['guided']:
    dial = f'It is guided by two calls of the network a step: {dial}.'
  else:
    scale = 1.0
    dial = f'It was distilled at w = {card["w_min"]:g} and takes no other'
    dial += ': pass `guidance_scale = 1`.' if text else '.'
    dial += ' One call of the network a step, and nothing added to it.'
  if licence:
    whose = ', said when it was exported'
  elif licence := card.get('licence') or '':
    whose = ', that of the teacher it descends from'
  else:
    licence, whose = 'not stated', ': ask whoever published the teacher'
  lines = [
    '---', f'license: {licence}', 'library_name: diffusers', 'tags:', '- gdistill', '---', '',
    f'# {card["stage"]} of gdistill, {steps} steps', '',
    'Distilled by gdistill after Meng et al., "On Distillation of Guided Diffusion Models" '
    '(2210.03142).' if card['num_steps'] else 'Written by gdistill.',
    '', f'- Steps: {steps}, with the DDIM scheduler in this folder (trailing spacing).',
    f'- {dial}', f'- Licence: {licence}{whose}.', *(f'- {n}.' for n in _notes(folder, frozen)), '',
  ]  # fmt: skip
  code = _prompting(folder, frozen, scale) if text else _drawing(folder, frozen, scale)
  return '\n'.join([*lines, '```python', *code, '```', ''])


def _prompting(folder: folders.Folder, frozen: frozen_networks.Frozen, scale: float) -> list[str]:
  steps = folder.card['num_steps'] or 50
  name = _index(folder, frozen)['_class_name']
  return [
    'import diffusers', '',
    f'pipe = diffusers.{name}.from_pretrained(FOLDER, safety_checker=None)',
    f'pipe("a photo", num_inference_steps={steps}, guidance_scale={scale:g})',
  ]  # fmt: skip


def _drawing(folder: folders.Folder, frozen: frozen_networks.Frozen, scale: float) -> list[str]:
  """DDIM by class, for which diffusers has no pipeline: z [B, C, H, W] is noise, then a picture."""
  pixels = folder.settings.network == 'unet'
  given, before = ['z', 't', 'table[{}][:, None]'], []
  step = 'z = scheduler.step(output, t, z).prev_sample'
  if pixels:
    given = ['z', 'level', 'torch.zeros(len(z), 0, 1)', 'class_labels={}']
    before = [  # whatever the limits of the schedule: what the network sees is an angle
      '  abar = scheduler.alphas_cumprod[t]',
      '  level = 2000 / torch.pi * ((1 - abar) / abar).sqrt().atan() - 1',
    ]
    step = 'z = scheduler.step(output, t, z, use_clipped_model_output=True).prev_sample'
  if folder.takes_w:
    given.append('timestep_cond=features')
  lines = [
    'import diffusers, safetensors.torch, torch', '',
    f'# z: noise [B, {", ".join(map(str, np.roll(networks.image_shape(folder.settings), 1)))}], '
    'label: int64 [B]',
    "unet = diffusers.UNet2DConditionModel.from_pretrained(FOLDER, subfolder='unet')",
    "scheduler = diffusers.DDIMScheduler.from_pretrained(FOLDER, subfolder='scheduler')",
    f'scheduler.set_timesteps({folder.card["num_steps"] or 50})',
  ]  # fmt: skip
  if not pixels:
    lines += [
      f"rest = safetensors.torch.load_file(FOLDER + '/{_REST}')",
      f"table = rest['{unet2d.CLASSES}']  # its last row is no class",
    ]
  if folder.takes_w or folder.guided:
    lines.append(f'w = torch.full((len(z),), {scale - 1.0:g})')
  if folder.takes_w:
    lines += [
      'features = diffusers.StableDiffusionPipeline.get_guidance_scale_embedding(',
      '  None, w, unet.config.time_cond_proj_dim)',
    ]
  call = f'unet({", ".join(given)}).sample'
  lines += ['for t in scheduler.timesteps:', *before, f'  output = {call.format("label")}']
  if folder.guided:
    none = f'torch.full_like(label, {folder.settings.num_classes})'
    lines += [
      f'  null = {call.format(none)}',
      '  output = output + w[:, None, None, None] * (output - null)',
    ]
  return [*lines, f'  {step}', *_decoding(frozen)]


def _decoding(frozen: frozen_networks.Frozen) -> list[str]:
  """From latents to a picture, where diffusers has the autoencoder."""
  found = frozen.autoencoder
  if found is None or getattr(found.net, 'pool', False):
    return []
  shift = f' + {found.shift:g}' if found.shift else ''
  return [
    f"vae = diffusers.{_VAES[found.kind]}.from_pretrained(FOLDER, subfolder='vae')",
    f'images = vae.decode(z / {found.scale:g}{shift}).sample  # from -1 to 1',
  ]


def _notes(folder: folders.Folder, frozen: frozen_networks.Frozen) -> list[str]:
  notes = []
  steps = folder.card['num_steps']
  if steps and 1000 % steps:
    notes.append(
      f'{steps} does not divide 1000: diffusers rounds the {steps} timesteps to whole ones, and '
      'pictures differ a little from those drawn here'
    )
  if frozen.autoencoder is not None and getattr(frozen.autoencoder.net, 'pool', False):
    notes.append('diffusers has no class for this tiny autoencoder: decode with gdistill')
  return notes


def _save(folder: pathlib.Path, config: dict[str, Any], state: dict[str, np.ndarray]) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  _save_arrays(folder / _WEIGHTS, state)
  _write_json(folder / 'config.json', {**config, '_diffusers_version': _VERSION})


def _save_arrays(file: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  files.write(file, {name: np.ascontiguousarray(a) for name, a in arrays.items()})


def _as_float32(folder: pathlib.Path) -> None:
  """transformers loads what is stored, and a pipeline takes no mixture: all are float32 then."""
  for file in folder.glob('*.safetensors'):
    stored = files.weights(file)
    half = {n for n, a in stored.items() if a.dtype.kind in 'fV' and a.dtype.itemsize < 4}
    if half:
      _save_arrays(file, {n: a.astype(np.float32) if n in half else a for n, a in stored.items()})
      config = common.read_json(folder / 'config.json')
      wide = {k: 'float32' for k in ('dtype', 'torch_dtype') if k in config}
      _write_json(folder / 'config.json', {**config, **wide})


def _write_json(file: pathlib.Path, value: Any) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')
