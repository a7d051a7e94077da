"""Writes a finished round as a folder that diffusers opens, and reads the folder back bit for bit.

An exported folder holds these files and subfolders:
  model_index.json      diffusers' class of the pipeline and of each network
  unet/, scheduler/     the network and diffusers' scheduler
  vae/                  the autoencoder, only for a network on latents
  text_encoder/         the text encoder, only for a network with prompts
  tokenizer/            the tokenizer, only for a network with prompts
  README.md             the model card for readers, which published/readme.py writes
  gdistill/             card.json (the record of the round), and rest.safetensors (the parameters
                        that diffusers has no array for)

Weights are float32 and have diffusers' array names, as convert/stable_diffusion_unet.py and
convert/pixel_unet.py describe.
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
from gdistill.rounds import classes
from gdistill.rounds import folder as folders
from gdistill.rounds import network as networks

_DIFFUSERS_VERSION = '0.42.1'  # version of diffusers with which exported folders are tested


def run(folder: folders.Folder, out: pathlib.Path, licence: str = '') -> list[str]:
  """Exports the finished round `folder` to the folder `out`; returns notes for the user.

  A note is a sentence on a difference between diffusers and gdistill. If `licence` is '', the
  licence in the round's card.json is exported. Raises ConfigError, before any file is written, if
  diffusers cannot run the network.
  """
  frozen = frozen_networks.read_frozen(folder)
  _check_exportable(folder, frozen)
  config, state, back = _to_diffusers(folder)
  card = {**folder.card, 'licence': licence} if licence else dict(folder.card)
  if names := classes.names_of(card):  # an older version recorded ImageNet's classes as numbers
    card['class_names'] = list(names)
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
  text = readme.text(folder, frozen, licence)
  (out / 'README.md').write_text(text, encoding='utf-8', errors='backslashreplace')
  return readme.notes(folder, frozen)


def is_export(path: pathlib.Path) -> bool:
  """Returns whether `path` is a folder that `exporting.run` wrote."""
  return (path / export_layout.CARD).is_file()


def read(
  path: pathlib.Path,
) -> tuple[dict[str, Any], dict, autoencoders.Autoencoder | None, texts.TextEncoder | None]:
  """Returns (content of card.json, parameters, autoencoder, text encoder) of an exported folder.

  The autoencoder is None for a network on pixels, and the text encoder is None for a network that
  takes no text. Raises DataError if a file of the exported folder is damaged.
  """
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
      f'{path} is damaged: a field of a JSON file or an array is missing or has a wrong name '
      f'({e}); export the round again with gdistill export'
    ) from e
  flat = traverse_util.flatten_dict(params, sep='/') | rest
  text = None
  latents = card.get('latents')
  if latents and latents['text']:
    text = texts.read(os.fspath(path), latents['text_length'])
  autoencoder = autoencoders.read(path / 'vae') if latents else None
  return card, traverse_util.unflatten_dict(flat, sep='/'), autoencoder, text


def _check_exportable(folder: folders.Folder, frozen: frozen_networks.Frozen) -> None:
  """Raises ConfigError with the reason if diffusers cannot run the network of the round."""
  sampling.check_draws(folder.path, folder.card)
  _check_network(folder)
  if folder.card.get('sampler') == 'stochastic':
    raise errors.ConfigError(
      f'{folder.path} was distilled for the stochastic sampler, which diffusers does not have; '
      "train a run with progressive.sampler='deterministic', and export a student of that run"
    )
  if folder.settings.predict not in schedulers.PREDICTION_TYPES:
    raise errors.ConfigError(
      f'{folder.path}: model.predict={folder.settings.predict!r} is not a prediction type of '
      f'diffusers; export a round with model.predict={" or ".join(schedulers.PREDICTION_TYPES)}'
    )
  if frozen.text is not None:
    _check_text(folder, frozen.text)


def _check_network(folder: folders.Folder) -> None:
  """Raises ConfigError if diffusers has no class or no pipeline for the network of the round."""
  settings = folder.settings
  if settings.network == 'dit':
    raise errors.ConfigError(
      f"{folder.path} is a DiT and cannot be exported: diffusers' DiT has no input for w, and "
      'diffusers has no pipeline for students; draw from this round with gdistill sample'
    )
  if settings.network == 'latent_unet' and settings.time != 'index':
    raise errors.ConfigError(
      f"{folder.path}: model.time={settings.time!r} must be 'index', with a discrete noise "
      "schedule, because diffusers' networks take an integer timestep; draw from this round with "
      'gdistill sample'
    )
  if settings.network == 'unet' and (settings.time, folder.noise.name) != ('phi', 'cosine'):
    raise errors.ConfigError(
      f"{folder.path}: a pixel U-Net can be exported only with model.time='phi' and noise.name="
      f"'cosine', and this network has {settings.time!r} and {folder.noise.name!r}; draw from this "
      'round with gdistill sample'
    )
  if folder.guided and settings.guided_channels:
    raise errors.ConfigError(
      f'{folder.path}: model.guided_channels={settings.guided_channels} must be 0, which means all '
      "channels, because diffusers' pipelines guide all channels; draw from this round with "
      'gdistill sample'
    )
  inpainting = settings.image_channels + 1
  if settings.extra_channels not in (0, inpainting):
    raise errors.ConfigError(
      f'{folder.path}: model.extra_channels={settings.extra_channels} must be 0, or {inpainting} '
      'for inpainting (a mask and a masked picture): diffusers has no pipeline for other inputs; '
      'draw from this round with gdistill sample'
    )


def _check_text(folder: folders.Folder, text: texts.TextEncoder) -> None:
  """Raises ConfigError if diffusers' pipelines encode a prompt differently than gdistill does."""
  if text.kind != 'clip':
    raise errors.ConfigError(
      f'{folder.path} reads text with a {text.kind} encoder and masks the padding, and '
      "diffusers' pipelines mask no padding; draw from this round with gdistill sample, or export "
      "a round with CLIP's text encoder"
    )
  most = frozen_networks.text_encoder(frozen_networks.beside(folder, ''), 0).length
  if text.length != most:
    raise errors.ConfigError(
      f'{folder.path} reads {text.length} tokens of a prompt, and diffusers pads every prompt to '
      f"the tokenizer's maximum of {most}; distil with latents.text_length=0, which means {most}"
    )


def _to_diffusers(folder: folders.Folder) -> tuple[dict[str, Any], dict[str, np.ndarray], dict]:
  """Returns (content of config.json, {name: array} for diffusers, parameters restored from arrays).

  Parameters that diffusers has no array for are missing or changed in the restored parameters, so
  gdistill/rest.safetensors must hold these parameters.
  """
  settings = folder.settings
  params = jax.tree.map(np.asarray, folder.params)
  if settings.network == 'unet':
    config, state = pixel_unet.state_from(params, settings)
    return config, state, pixel_unet.params_from(config, state)
  config = unet2d.config_from(folder.net, settings.image_size)
  state = unet2d.state_from(params, folder.net)
  back = unet2d.params_from(state, folder.net)
  state.pop(unet2d.CLASSES, None)  # diffusers has no array for the table of class embeddings
  return config, state, back


def _rest(params: Mapping, back: Mapping) -> dict[str, np.ndarray]:
  """Returns {name: array}, the content of the file gdistill/rest.safetensors.

  rest.safetensors holds the table of class embeddings, and each parameter in `params` that differs
  from the parameter in `back`, which was restored from diffusers' arrays.
  """
  mine, theirs = (traverse_util.flatten_dict(p, sep='/') for p in (params, back))
  rest = {k: np.asarray(v) for k, v in mine.items() if not _equal(v, theirs.get(k))}
  if 'class_table' in mine:
    rest[unet2d.CLASSES] = np.asarray(mine['class_table'])
  return rest


def _equal(a: Any, b: Any) -> bool:
  return b is not None and np.array_equal(np.asarray(a), np.asarray(b))


def _to_float32(folder: pathlib.Path) -> None:
  """Rewrites the half-precision weights in `folder`, a text encoder's folder, as float32.

  The text encoder must be float32, because transformers loads weights in the type of the file, and
  the exported U-Net, which is float32, cannot take text embeddings of another type.
  """
  for file in folder.glob('*.safetensors'):
    stored = files.weights(file)
    # numpy's dtype.kind is 'V' for bfloat16, and 'f' for float16 and float32
    half = {n for n, a in stored.items() if a.dtype.kind in 'fV' and a.dtype.itemsize < 4}
    if half:
      _write_arrays(file, {n: a.astype(np.float32) if n in half else a for n, a in stored.items()})
      config = source_files.read_json(folder / 'config.json')
      wide = {k: 'float32' for k in ('dtype', 'torch_dtype') if k in config}
      _write_json(folder / 'config.json', {**config, **wide})


def _write_arrays(file: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  for name, a in arrays.items():
    if a.dtype.kind in 'fV' and not np.isfinite(a.astype(np.float32)).all():  # 'V' is bfloat16
      raise errors.NumericsError(
        f'{file.name}: {name} is not finite (holds NaN or infinity), so nothing is exported; the '
        'weights of the round are damaged: restore its folder from a copy, or train it again'
      )
  files.write(file, {name: np.ascontiguousarray(a) for name, a in arrays.items()})


def _write_config(file: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Writes `config` as JSON for diffusers, with the field _diffusers_version added."""
  about = {'_class_name': config['_class_name'], '_diffusers_version': _DIFFUSERS_VERSION}
  _write_json(file, {**about, **config})


def _write_json(file: pathlib.Path, value: Any) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')
