"""Published teachers as this package has them: settings, noise, parameters, and what guides them.

Each reader takes a folder or a file of safetensors and returns a `Teacher`. Nothing here writes.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from flax import traverse_util

from gdistill import errors
from gdistill import model
from gdistill import recipe as recipes
from gdistill.convert import adm
from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import dit
from gdistill.convert import files
from gdistill.convert import text as texts
from gdistill.convert import unet2d
from gdistill.models import latent_unet

KINDS = ('stable_diffusion', 'cin256', 'dit', 'sit', 'adm64', 'adm256')
_TORCH = ('.ckpt', '.pt', '.pth', '.bin')
_WEIGHTS = 'diffusion_pytorch_model.safetensors'
_LISTED = 8
# Samplers whose folders say nothing of a network but its betas and what it predicts.
_SCHEDULERS = (
  'DDIMScheduler', 'DDPMScheduler', 'PNDMScheduler', 'LMSDiscreteScheduler', 'LCMScheduler',
  'HeunDiscreteScheduler', 'EulerDiscreteScheduler', 'EulerAncestralDiscreteScheduler',
  'DPMSolverMultistepScheduler', 'DPMSolverSinglestepScheduler', 'UniPCMultistepScheduler',
  'DEISMultistepScheduler',
)  # fmt: skip
_BETAS = {
  'linear': 'linear_beta', 'scaled_linear': 'scaled_linear', 'squaredcos_cap_v2': 'squared_cosine'
}  # fmt: skip
# A name that tells such a file from those below it: ADM has 18 input blocks for 256 pixels, 16 for
# 64.
_TOLD_BY = {
  'cin256': 'model.diffusion_model.input_blocks.0.0.weight', 'dit': 'x_embedder.proj.weight',
  'adm256': 'input_blocks.17.0.in_layers.0.weight',
  'adm64': 'input_blocks.15.0.in_layers.0.weight',
}  # fmt: skip
_PREDICTS = {'epsilon': 'eps', 'v_prediction': 'v', 'sample': 'x'}
_LDM_NOISE = recipes.Noise('scaled_linear', beta_start=0.0015, beta_end=0.0195)
_DDPM_NOISE = recipes.Noise('linear_beta', beta_start=1e-4, beta_end=0.02)
# (fields of the network, side of its images, how q, k and v lie in a layer, noise)
_ADM = {
  'adm64': (adm.ADM_64, 64, 'new', recipes.Noise('squared_cosine')),
  'adm256': (adm.ADM_256, 256, 'legacy', _DDPM_NOISE),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
  """A network with what it needs. `null` says what it sees when it is conditioned on nothing.

  'trained' is a null condition of its own; 'network' another network's parameters, `null_params`;
  'none' neither: it cannot be guided alone.
  """

  kind: str
  settings: recipes.Model
  noise: recipes.Noise
  params: dict
  null: Literal['trained', 'network', 'none']
  null_params: dict | None
  autoencoder: autoencoders.Autoencoder | None
  text: texts.TextEncoder | None
  about: Mapping[str, Any]  # digest, licence, epsilon, head order, null rule: for the card


def read(
  source: str,
  kind: str = '',
  null: str = '',
  autoencoder: str = '',
  text: str = '',
  licence: str = '',
) -> Teacher:
  """The teacher of a folder or file; the kind is told from what it holds where it is not given.

  `null` is the file of a second, unconditional network (ADM), `autoencoder` and `text` are for a
  source that brings none. ConfigError or DataError says what is not there or does not fit.
  """
  path = pathlib.Path(source)
  if path.suffix.lower() in _TORCH:
    raise _of_torch(path)
  if not path.exists():
    raise errors.DataError(f'--source={path} does not exist; name a folder or a .safetensors file')
  kind = kind or _kind(path)
  if kind not in KINDS:
    raise errors.ConfigError(f'--kind={kind!r} must be one of {", ".join(KINDS)}')
  if null and not kind.startswith('adm'):
    raise errors.ConfigError(
      f'--null={null} is for adm64 and adm256: {kind} has a null condition of its own'
    )
  reader = {
    'stable_diffusion': _stable_diffusion, 'cin256': _cin256, 'dit': _dit, 'sit': _dit,
    'adm64': _adm, 'adm256': _adm,
  }[kind]  # fmt: skip
  found = reader(path, kind, null=null, autoencoder=autoencoder, text=text)
  about = {**found.about, 'licence': licence or _licence(path), 'source': path.name}
  return dataclasses.replace(found, about=about)


def noise_from(
  config: Mapping[str, Any], where: str = 'scheduler_config.json'
) -> tuple[recipes.Noise, str]:
  """(noise, predict) of diffusers' scheduler; ConfigError names what there is no place for."""
  name = config.get('_class_name')
  if name not in _SCHEDULERS:
    raise errors.ConfigError(
      f'{where}: _class_name={name!r} is a scheduler of an unknown kind; known are '
      f'{", ".join(_SCHEDULERS)}'
    )
  only = {
    'num_train_timesteps': 1000, 'trained_betas': None, 'rescale_betas_zero_snr': False,
    'use_karras_sigmas': False, 'use_flow_sigmas': False,
  }  # fmt: skip
  for field, value in only.items():
    if config.get(field, value) not in (value, None):
      raise errors.ConfigError(f'{where}: {field}={config[field]!r} must be {value!r}')
  for field, table in (('beta_schedule', _BETAS), ('prediction_type', _PREDICTS)):
    value = config.get(field, {'beta_schedule': 'linear', 'prediction_type': 'epsilon'}[field])
    if value not in table:
      raise errors.ConfigError(f'{where}: {field}={value!r} must be one of {", ".join(table)}')
  betas = _BETAS[config.get('beta_schedule', 'linear')]
  start, end = config.get('beta_start', 1e-4), config.get('beta_end', 0.02)
  noise = recipes.Noise(betas, beta_start=float(start), beta_end=float(end))
  return noise, _PREDICTS[config.get('prediction_type', 'epsilon')]


def latent_settings(fields: Mapping[str, Any], size: int, predict: str) -> recipes.Model:
  """The recipe's section of a LatentUNet's fields; ConfigError where it has no place for them."""
  channels, heads = fields['channels'], fields['heads']
  if any(c % channels[0] for c in channels):
    raise errors.ConfigError(
      f'block_out_channels={list(channels)} are not multiples of the first of them'
    )
  dims = {c // h for c, h in zip(channels, heads, strict=True)}
  if len(set(heads)) > 1 and len(dims) > 1:
    raise errors.ConfigError(f'attention_head_dim={list(heads)} is neither one number of heads nor '
                             'one size of head for all levels')  # fmt: skip
  attends = tuple(size >> i for i, on in enumerate(fields['attention']) if on)
  return recipes.Model(
    image_size=size,
    image_channels=fields['out_channels'],
    num_classes=fields['num_classes'] or 1,
    channels=channels[0],
    multipliers=tuple(c // channels[0] for c in channels),
    num_blocks=fields['num_blocks'],
    attention_resolutions=attends,
    emb_channels=fields['emb_channels'] or 4 * channels[0],
    heads=heads[0] if len(set(heads)) == 1 else None,
    head_dim=None if len(set(heads)) == 1 else dims.pop(),
    groups=fields['groups'],
    dropout=fields['dropout'],
    w_features=fields['w_features'] or 256,
    w_scale=1000.0,
    dtype='float32',
    predict=predict,
    network='latent_unet',
    context=fields['context'],
    context_dim=fields['context_dim'],
    context_length=fields.get('context_length', 77) if fields['context'] == 'text' else 0,
    transformer_depth=fields['transformer_depth'],
    linear_projection=fields['linear_projection'],
    extra_channels=fields['extra_channels'],
    time='index',
    epsilon=fields['epsilon'],
    freq_shift=0.0,
    cos_first=True,
  )


def digest(state: Mapping[str, np.ndarray]) -> str:
  """sha256 over sorted names, types, shapes and bytes."""
  found = hashlib.sha256()
  for name in sorted(state):
    value = np.ascontiguousarray(state[name])
    found.update(f'{name} {value.dtype} {value.shape}\n'.encode())
    found.update(value.tobytes())
  return found.hexdigest()


def _stable_diffusion(path: pathlib.Path, kind: str, null: str, autoencoder: str, text: str) -> Any:
  """A folder of diffusers': unet, vae, text_encoder, tokenizer, scheduler."""
  config, state = _part(path, 'unet')
  noise, predict = noise_from(
    read_json(path / 'scheduler' / 'scheduler_config.json'), str(path / 'scheduler')
  )
  if config.get('time_cond_proj_dim'):
    raise errors.ConfigError(
      f'{path}/unet: time_cond_proj_dim={config["time_cond_proj_dim"]}: it takes w already, so it '
      'is a student and no teacher; of students those can be read that gdistill exported, with the '
      'folder gdistill/ beside'
    )
  fields = unet2d.settings_from(config)
  encoder = texts.read(text or str(path))
  fields['context_length'] = encoder.length
  if encoder.width != fields['context_dim']:
    raise errors.ConfigError(
      f'{path}/unet attends to {fields["context_dim"]} channels, and the text encoder has '
      f'{encoder.width}; name its own with --text'
    )
  settings = latent_settings(fields, int(config.get('sample_size') or 64), predict)
  params = unet2d.params_from(state, model.build(settings, False, noise_settings=noise))
  ids, mask, _ = encoder.tokens([''])
  params['null_text'] = np.asarray(encoder.encode(encoder.params, ids, mask)[0], np.float32)
  found = autoencoders.read(autoencoder or path / 'vae')
  about = {'digest': digest(state), 'null_rule': "the text ''", 'head_order': 'q, k, v apart'}
  return Teacher(
    kind, settings, noise, params, 'trained', None, found, encoder,
    {**about, 'epsilon': settings.epsilon},
  )  # fmt: skip


def _cin256(path: pathlib.Path, kind: str, null: str, autoencoder: str, text: str) -> Any:
  """Latent diffusion's class-conditional network, by its own names in one file or by diffusers'."""
  if path.is_dir() and (path / 'unet').is_dir():
    config, state = _part(path, 'unet')
    beside = path / 'class_embedder' / _WEIGHTS
    if unet2d.CLASSES not in state and beside.is_file():
      state |= {unet2d.CLASSES: next(iter(files.read(beside).values()))}
    fields = unet2d.settings_from(config, _classes(state, path))
    size = int(config.get('sample_size') or 64)
    noise, predict = noise_from(read_json(path / 'scheduler' / 'scheduler_config.json'))
    settings = latent_settings(fields, size, predict)
    params = unet2d.params_from(state, model.build(settings, False, noise_settings=noise))
    where = next((path / n for n in ('vqvae', 'vae', 'autoencoder') if (path / n).is_dir()), path)
  else:
    state = files.read(_one_file(path))
    fields = latent_unet.LatentUNet(**latent_unet.CIN256)
    fields = {f.name: getattr(fields, f.name) for f in dataclasses.fields(fields)}
    fields['num_classes'] = _classes(state, path)
    settings, noise = latent_settings(fields, 64, 'eps'), _LDM_NOISE
    params = unet2d.ldm_params_from(state, model.build(settings, False, noise_settings=noise))
    where = _one_file(path)
  about = {
    'digest': digest(state), 'null_rule': f'row {settings.num_classes} of the class table',
    'head_order': 'q, k, v apart', 'epsilon': settings.epsilon,
  }  # fmt: skip
  found = autoencoders.read(autoencoder or where)
  return Teacher(kind, settings, noise, params, 'trained', None, found, None, about)


def _dit(path: pathlib.Path, kind: str, null: str, autoencoder: str, text: str) -> Any:
  """DiT or SiT of any size, whose shapes say which."""
  folder = path / 'transformer' if (path / 'transformer').is_dir() else path
  state = files.read(_one_file(folder))
  params = _converted(path, dit.params_from, state)
  width = params['patch']['bias'].shape[0]
  patch, _, channels, _ = params['patch']['kernel'].shape
  out = params['final']['bias'].shape[0] // patch**2
  original = 'x_embedder.proj.weight' in state
  if 'pos_embed' in state:
    side = round(state['pos_embed'].shape[1] ** 0.5)
  else:
    side = int(read_json(folder / 'config.json').get('sample_size', 32)) // patch
  settings = recipes.Model(
    image_size=side * patch, image_channels=channels,
    num_classes=len(params['label']['embedding']) - 1, channels=width, multipliers=(1,),
    num_blocks=sum(name.startswith('block') for name in params), attention_resolutions=(),
    emb_channels=width, heads=16 if width == 1152 else width // 64, head_dim=None, groups=1,
    dropout=0.0, w_features=256, w_scale=1000.0, dtype='float32',
    predict='flow' if kind == 'sit' else 'eps', network='dit', patch=patch,
    time='linear' if kind == 'sit' else 'index',
    freq_shift=0.0 if original else 1.0,  # diffusers reads the same weights so
    cos_first=True, learned_sigma=out == 2 * channels,
  )  # fmt: skip
  noise = recipes.Noise('cosine') if kind == 'sit' else _DDPM_NOISE
  _check_shapes(path, params, settings, noise)
  where = autoencoder or (str(path / 'vae') if (path / 'vae').is_dir() else '')
  if not where:
    raise errors.ConfigError(
      f"--source={path} brings no autoencoder; name the folder of Stable Diffusion's "
      '(sd-vae-ft-ema) with --autoencoder'
    )
  about = {
    'digest': digest(state), 'null_rule': f'row {settings.num_classes} of the label table',
    'head_order': 'q, k, v in thirds', 'epsilon': 1e-6,
  }  # fmt: skip
  found = autoencoders.read(where)
  return Teacher(kind, settings, noise, params, 'trained', None, found, None, about)


def _adm(path: pathlib.Path, kind: str, null: str, autoencoder: str, text: str) -> Any:
  """ADM on ImageNet; `null` is the file of its unconditional network."""
  fields, size, order, noise = _ADM[kind]
  settings = recipes.Model(
    image_size=size, image_channels=3, groups=32, w_features=256, w_scale=1000.0, dtype='float32',
    predict='eps', time='index', **{'dropout': 0.0, **fields},
  )  # fmt: skip

  def network_of(file):
    state = files.read(file)
    net = model.build(settings, False, noise_settings=noise)
    params = _converted(file, adm.params_from, state, net, size, order)
    _check_shapes(file, params, settings, noise)
    return params, digest(state)

  params, of_params = network_of(_one_file(path))
  about = {
    'digest': of_params, 'epsilon': settings.epsilon,
    'head_order': 'q, k, v in thirds' if order == 'new' else 'q, k, v of each head in turn',
    'null_rule': 'none: it needs another, unconditional network',
  }  # fmt: skip
  if not null:
    return Teacher(kind, settings, noise, params, 'none', None, None, None, about)
  null_params, of_null = network_of(_one_file(pathlib.Path(null)))
  about |= {'null_rule': 'another network', 'null_digest': of_null}
  return Teacher(kind, settings, noise, params, 'network', null_params, None, None, about)


def _kind(path: pathlib.Path) -> str:
  """What a folder or a file holds, by its parts or names; DiT where it may be SiT."""
  if path.is_dir():
    if (path / 'unet').is_dir():
      return 'stable_diffusion' if (path / 'text_encoder').is_dir() else 'cin256'
    if (path / 'transformer').is_dir():
      return 'dit'
  names = set(files.names(_one_file(path)))
  for kind, name in _TOLD_BY.items():
    if name in names:
      return kind
  raise errors.ConfigError(
    f'--source={path} is not recognised by its folders or names; say --kind={"|".join(KINDS)}'
  )


def _classes(state: Mapping[str, np.ndarray], path: pathlib.Path) -> int:
  if unet2d.CLASSES not in state:
    raise errors.ConfigError(
      f'{path} has no {unet2d.CLASSES}, the table of classes, and is no class-conditional network '
      "of latent diffusion's; of Stable Diffusion name a folder as diffusers writes it"
    )
  return len(state[unet2d.CLASSES]) - 1


def _part(path: pathlib.Path, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  return read_json(path / name / 'config.json'), files.read(_one_file(path / name))


def _one_file(path: pathlib.Path) -> pathlib.Path:
  """The safetensors of a folder, or the file itself; ConfigError or DataError where it is none."""
  if path.suffix.lower() in _TORCH:
    raise _of_torch(path)
  if path.is_file():
    return path
  usual = path / _WEIGHTS
  if usual.is_file():
    return usual
  found = sorted(path.glob('*.safetensors'))
  if len(found) == 1:
    return found[0]
  of_torch = sorted(p for p in path.glob('*') if p.suffix.lower() in _TORCH)
  if of_torch:
    raise _of_torch(of_torch[0])
  count = f'{len(found)} .safetensors files' if found else 'no .safetensors file'
  raise errors.DataError(
    f'{path} holds {count} and not {_WEIGHTS}; name the file itself, or the folder above'
  )


def _of_torch(file: pathlib.Path) -> errors.ConfigError:
  return errors.ConfigError(
    f"{file} is one of torch's files, which may hold code; turn it into safetensors first: "
    f'gdistill convert checkpoint --source={file} --out={file.with_suffix(".safetensors")}'
  )


def _converted(path: pathlib.Path, convert: Callable, state: Mapping, *given: Any) -> dict:
  """convert(state, *given); ConfigError where an array has another shape than it counts on."""
  try:
    return convert(state, *given)
  except errors.ConfigError as e:
    raise errors.ConfigError(f'{path}: {e}') from e
  except (ValueError, IndexError) as e:
    raise errors.ConfigError(
      f'{path} holds an array of another shape than this network has: {e}; say another --kind'
    ) from e


def _check_shapes(
  path: pathlib.Path, params: Mapping, settings: recipes.Model, noise: recipes.Noise
) -> None:
  """ConfigError lists the parameters that are not as the network of these settings has them."""
  net = model.build(settings, False, noise_settings=noise)
  found, wanted = (
    {name: a.shape for name, a in traverse_util.flatten_dict(tree, sep='/').items()}
    for tree in (params, model.initial_shapes(net, settings))
  )
  odd = [
    f'{name} is {found.get(name, "missing")} and not {wanted.get(name, "there")}'
    for name in sorted(found.keys() | wanted.keys())
    if found.get(name) != wanted.get(name)
  ]
  if odd:
    more = f', and {len(odd) - _LISTED} more' if len(odd) > _LISTED else ''
    raise errors.ConfigError(
      f'{path} holds the weights of another network: {", ".join(odd[:_LISTED])}{more}'
    )


def read_json(file: pathlib.Path) -> dict[str, Any]:
  """The settings in a file; DataError where there are none."""
  try:
    found = json.loads(file.read_text(encoding='utf-8'))
  except OSError as e:
    raise errors.DataError(f'{file} cannot be read: {e.strerror}; download it') from e
  except (ValueError, RecursionError) as e:
    raise errors.DataError(f'{file} is damaged: {e}; download it again') from e
  if not isinstance(found, dict):
    raise errors.DataError(f'{file} is damaged: it holds no settings; download it again')
  return found


def _licence(path: pathlib.Path) -> str:
  """Of the model card beside the weights, 'not stated' where there is none."""
  card = (path if path.is_dir() else path.parent) / 'README.md'
  try:
    text = card.read_text(encoding='utf-8', errors='replace')
  except OSError:
    return 'not stated'
  found = re.search(r'^license:\s*(\S+)', text, re.MULTILINE)
  return found.group(1) if found else 'not stated'
