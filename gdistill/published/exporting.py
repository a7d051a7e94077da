"""Writes a finished round as a folder that diffusers opens, and reads that folder back bit for bit.

  model_index.json, unet/, scheduler/    what a pipeline loads; for latents also vae/, and for text
                                         text_encoder/ and tokenizer/
  README.md                              the model card, which published/readme.py writes
  gdistill/                              the round's card, and the parameters that diffusers' arrays
                                         have no place for

Weights are float32 under diffusers' names: see convert/stable_diffusion_unet.py and
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
from gdistill.published import export_layout
from gdistill.published import readme
from gdistill.published import schedulers
from gdistill.published import source_files
from gdistill.rounds import folder as folders
from gdistill.rounds import network as networks

_DIFFUSERS_VERSION = '0.42.1'  # the version that exported folders are tested with


def run(folder: folders.Folder, out: pathlib.Path, licence: str = '') -> list[str]:
  """Writes the round to `out`; returns the notes on the export that the user should see.

  '' as `licence` keeps the licence of the round's card. Raises ConfigError, before anything is
  written, if diffusers cannot run the network.
  """
  frozen = frozen_networks.read_frozen(folder)
  _check_exportable(folder, frozen)
  config, state, back = _to_diffusers(folder)
  card = {**folder.card, 'licence': licence} if licence else folder.card
  clip_sample = not folder.card.get('latents')
  scheduler = schedulers.config_from(folder.noise, folder.card['predict'], clip_sample)
  _write_arrays(out / 'unet' / source_files.WEIGHTS_NAME, state)
  _write_config(out / 'unet' / 'config.json', config)
  _write_config(out / 'scheduler' / 'scheduler_config.json', scheduler)
  if frozen.text is not None:
    texts.write(os.fspath(out), frozen.text)
    _to_float32(out / 'text_encoder')
  if frozen.autoencoder is not None:
    autoencoders.write(out / 'vae', frozen.autoencoder)
  _write_config(out / 'model_index.json', export_layout.model_index(folder, frozen))
  _write_arrays(out / export_layout.REST, _rest(folder.params, back))
  _write_json(out / export_layout.CARD, card)
  (out / 'README.md').write_text(readme.text(folder, frozen, licence), encoding='utf-8')
  return readme.notes(folder, frozen)


def is_export(path: pathlib.Path) -> bool:
  """Returns whether `path` is a folder that `run` wrote."""
  return (path / export_layout.CARD).is_file()


def read(
  path: pathlib.Path,
) -> tuple[dict[str, Any], dict, autoencoders.Autoencoder | None, texts.TextEncoder | None]:
  """Returns (card, parameters, autoencoder, text encoder) of a folder that `run` wrote."""
  card = source_files.read_json(path / export_layout.CARD)
  try:
    settings, noise = folders.settings_of(card)
    config = source_files.read_json(path / 'unet' / 'config.json')
    state = files.weights(path / 'unet' / source_files.WEIGHTS_NAME)
    rest = files.weights(path / export_layout.REST)
    if unet2d.CLASSES in rest:
      state[unet2d.CLASSES] = rest.pop(unet2d.CLASSES)
    if settings.network == 'unet':
      params = pixel_unet.params_from(config, state)
    else:
      net = networks.build(settings, card['takes_w'], noise_settings=noise)
      params = unet2d.params_from(state, net)
  except (KeyError, TypeError) as e:
    raise errors.DataError(
      f'{path} is damaged: its settings or arrays lack or misname {e}; export the round again'
    ) from e
  flat = traverse_util.flatten_dict(params, sep='/') | rest
  text = None
  latents = card.get('latents')
  if latents and latents['text']:
    text = texts.read(os.fspath(path), latents['text_length'])
  autoencoder = autoencoders.read(path / 'vae') if latents else None
  return card, traverse_util.unflatten_dict(flat, sep='/'), autoencoder, text


def _check_exportable(folder: folders.Folder, frozen: frozen_networks.Frozen) -> None:
  """Raises ConfigError if diffusers cannot run the round's network, and says why."""
  sampling.check_draws(folder.path, folder.card)
  _check_network(folder)
  if folder.card.get('sampler') == 'stochastic':
    raise errors.ConfigError(
      f'{folder.path} was distilled for the stochastic sampler, which diffusers does not have; '
      "export a student of a run with progressive.sampler='deterministic'"
    )
  if folder.settings.predict not in schedulers.PREDICTION_TYPES:
    raise errors.ConfigError(
      f'{folder.path}: model.predict={folder.settings.predict!r} is not a prediction type of '
      f'diffusers; it must be one of {", ".join(schedulers.PREDICTION_TYPES)}'
    )
  if frozen.text is not None:
    _check_text(folder, frozen.text)


def _check_network(folder: folders.Folder) -> None:
  """Raises ConfigError for a network that diffusers has no class or no pipeline for."""
  settings = folder.settings
  if settings.network == 'dit':
    raise errors.ConfigError(
      f"{folder.path} is a DiT and cannot be exported: diffusers' DiT has no input for w, and no "
      'pipeline for students; draw from the round with gdistill sample'
    )
  if settings.network == 'latent_unet' and settings.time != 'index':
    raise errors.ConfigError(
      f"{folder.path}: model.time={settings.time!r} must be 'index', with a discrete noise "
      "schedule, because diffusers' networks take an integer timestep"
    )
  if settings.network == 'unet' and (settings.time, folder.noise.name) != ('phi', 'cosine'):
    raise errors.ConfigError(
      f"{folder.path}: a pixel U-Net can be exported only with model.time='phi' and noise.name="
      f"'cosine', and this network has {settings.time!r} and {folder.noise.name!r}"
    )
  inpainting = settings.image_channels + 1
  if settings.extra_channels not in (0, inpainting):
    raise errors.ConfigError(
      f'{folder.path}: model.extra_channels={settings.extra_channels} must be 0, or {inpainting} '
      'for inpainting (a mask and a masked picture): diffusers has no pipeline for other inputs'
    )


def _check_text(folder: folders.Folder, text: texts.TextEncoder) -> None:
  """Raises ConfigError if a pipeline of diffusers would encode a prompt in another way."""
  if text.kind != 'clip':
    raise errors.ConfigError(
      f'{folder.path} reads text with a {text.kind} encoder and masks the padding, and '
      "diffusers' pipelines mask no padding; export a network with CLIP's text encoder"
    )
  most = frozen_networks.text_encoder(frozen_networks.beside(folder, ''), 0).length
  if text.length != most:
    raise errors.ConfigError(
      f'{folder.path} reads {text.length} tokens of a prompt, and diffusers pads every prompt to '
      f"the tokenizer's maximum of {most}; distil with latents.text_length=0, which means {most}"
    )


def _to_diffusers(folder: folders.Folder) -> tuple[dict[str, Any], dict[str, np.ndarray], dict]:
  """Returns (config.json, arrays by diffusers' names, parameters that the arrays give back)."""
  settings = folder.settings
  params = jax.tree.map(np.asarray, folder.params)
  if settings.network == 'unet':
    config, state = pixel_unet.state_from(params, settings)
    return config, state, pixel_unet.params_from(config, state)
  config = unet2d.config_from(folder.net, settings.image_size)
  state = unet2d.state_from(params, folder.net)
  back = unet2d.params_from(state, folder.net)
  state.pop(unet2d.CLASSES, None)  # diffusers has no place for the table of classes: _rest keeps it
  return config, state, back


def _rest(params: Mapping, back: Mapping) -> dict[str, np.ndarray]:
  """Returns the table of classes, and all parameters that differ from `back`."""
  mine, theirs = (traverse_util.flatten_dict(p, sep='/') for p in (params, back))
  rest = {k: np.asarray(v) for k, v in mine.items() if not _equal(v, theirs.get(k))}
  if 'class_table' in mine:
    rest[unet2d.CLASSES] = np.asarray(mine['class_table'])
  return rest


def _equal(a: Any, b: Any) -> bool:
  return b is not None and np.array_equal(np.asarray(a), np.asarray(b))


def _to_float32(folder: pathlib.Path) -> None:
  """Rewrites half-precision weights of a text encoder in float32.

  transformers loads weights in the stored type, and a pipeline whose networks are float32 takes no
  text embeddings of another type.
  """
  for file in folder.glob('*.safetensors'):
    stored = files.weights(file)
    # bfloat16 is of kind 'V' in numpy
    half = {n for n, a in stored.items() if a.dtype.kind in 'fV' and a.dtype.itemsize < 4}
    if half:
      _write_arrays(file, {n: a.astype(np.float32) if n in half else a for n, a in stored.items()})
      config = source_files.read_json(folder / 'config.json')
      wide = {k: 'float32' for k in ('dtype', 'torch_dtype') if k in config}
      _write_json(folder / 'config.json', {**config, **wide})


def _write_arrays(file: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  files.write(file, {name: np.ascontiguousarray(a) for name, a in arrays.items()})


def _write_config(file: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Writes a config of diffusers, with the version of diffusers that exports are tested with."""
  about = {'_class_name': config['_class_name'], '_diffusers_version': _DIFFUSERS_VERSION}
  _write_json(file, {**about, **config})


def _write_json(file: pathlib.Path, value: Any) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')
