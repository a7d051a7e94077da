"""Published teachers as this package has them: settings, noise, parameters, and what guides them.

Each reader takes a folder or a file of safetensors and returns a `Teacher`. Nothing here writes.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from flax import traverse_util

from gdistill import errors
from gdistill.convert import adm
from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import dit
from gdistill.convert import files
from gdistill.convert import folding
from gdistill.convert import text as texts
from gdistill.convert import unet2d
from gdistill.models import latent_unet
from gdistill.process import progress
from gdistill.recipe import checks as recipe_checks
from gdistill.recipe import settings as recipes
from gdistill.rounds import network as networks

KINDS = ('stable_diffusion', 'cin256', 'dit', 'sit', 'adm64', 'adm256')
_WEIGHTS = 'diffusion_pytorch_model.safetensors'
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
_TOLD_BY = (
  ('cin256', 'model.diffusion_model.input_blocks.0.0.weight'),
  ('dit', 'x_embedder.proj.weight'),
  ('dit', 'transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight'),
  ('adm256', 'input_blocks.17.0.in_layers.0.weight'),
  ('adm64', 'input_blocks.15.0.in_layers.0.weight'),
)
# Arguments: the kinds they are for, and why others have no use for them.
_FOR = {
  'null': (('adm64', 'adm256'), 'has a null condition of its own'),
  'autoencoder': (('stable_diffusion', 'cin256', 'dit', 'sit'), 'draws pixels'),
  'text': (('stable_diffusion',), 'is conditioned on classes'),
}
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
  if not path.exists():
    raise errors.DataError(f'--source={path} does not exist; name a folder or a .safetensors file')
  if path.is_file():
    _one_file(path)  # of torch's it says what to do with it
  told, kind = kind, kind or _kind(path, text)
  if kind not in KINDS:
    raise errors.ConfigError(f'--kind={kind!r} must be one of {", ".join(KINDS)}')
  for flag, value in (('null', null), ('autoencoder', autoencoder), ('text', text)):
    kinds, reason = _FOR[flag]
    if value and kind not in kinds:
      raise errors.ConfigError(
        f'--{flag}={value} is for {", ".join(kinds)}: {kind} {reason}; leave it out'
      )
  reader = {
    'stable_diffusion': _stable_diffusion, 'cin256': _cin256, 'dit': _dit, 'sit': _dit,
    'adm64': _adm, 'adm256': _adm,
  }[kind]  # fmt: skip
  found = reader(path, kind, null=null, autoencoder=autoencoder, text=text)
  _check_frozen(found, path, autoencoder, text)
  if kind == 'dit' and not told:
    progress.say(
      f'--source={path} was taken for DiT, whose names SiT has too: --kind=sit is for SiT'
    )
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
    'use_flow_sigmas': False,
  }  # fmt: skip
  for field, value in only.items():
    if config.get(field, value) not in (value, None):
      raise errors.ConfigError(f'{where}: {field}={config[field]!r} must be {value!r}')
  for field, table in (('beta_schedule', _BETAS), ('prediction_type', _PREDICTS)):
    value = config.get(field, {'beta_schedule': 'linear', 'prediction_type': 'epsilon'}[field])
    if value not in list(table):
      raise errors.ConfigError(f'{where}: {field}={value!r} must be one of {", ".join(table)}')
  betas = _BETAS[config.get('beta_schedule', 'linear')]
  start, end = config.get('beta_start', 1e-4), config.get('beta_end', 0.02)
  for field, value in (('beta_start', start), ('beta_end', end)):
    if not (folding.is_share(value) and value > 0):
      raise errors.ConfigError(f'{where}: {field}={value!r} must be a number between 0 and 1')
  noise = recipes.Noise(betas, beta_start=float(start), beta_end=float(end))
  return noise, _PREDICTS[config.get('prediction_type', 'epsilon')]


def latent_settings(fields: Mapping[str, Any], size: int, predict: str) -> recipes.Model:
  """The recipe's section of a LatentUNet's fields; ConfigError where it has no place for them."""
  channels, heads = fields['channels'], fields['heads']
  if any(c % channels[0] for c in channels):
    raise errors.ConfigError(
      f'block_out_channels={list(channels)} are not multiples of the first of them'
    )
  if size % 2 ** (len(channels) - 1):
    raise errors.ConfigError(
      f'sample_size={size} must be divisible by {2 ** (len(channels) - 1)}: {len(channels)} levels '
      f'halve it {len(channels) - 1} times'
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
  noise, predict = _scheduler(path)
  if config.get('time_cond_proj_dim'):
    raise errors.ConfigError(
      f'{path}/unet: time_cond_proj_dim={config["time_cond_proj_dim"]}: it takes w already, so it '
      'is a student and no teacher; of students those can be read that gdistill exported, with the '
      'folder gdistill/ beside'
    )
  where = path / 'unet' / 'config.json'
  with _of(where):
    fields = unet2d.settings_from(config)
  encoder = texts.read(text or str(path))
  fields['context_length'] = encoder.length
  if encoder.width != fields['context_dim']:
    raise errors.ConfigError(
      f'{path}/unet attends to {fields["context_dim"]} channels, and the text encoder has '
      f'{encoder.width}; name its own with --text'
    )
  with _of(where):
    settings = latent_settings(fields, _size(config, 64), predict)
    net = _network(settings, noise)
  with _of(path / 'unet'):
    params = unet2d.params_from(state, net)
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
      tables = list(_state(beside).values())
      state |= {unet2d.CLASSES: tables[0]} if tables else {}
    noise, predict = _scheduler(path)
    with _of(path / 'unet' / 'config.json'):
      fields = unet2d.settings_from(config, _classes(state, path))
      settings = latent_settings(fields, _size(config, 64), predict)
      net = _network(settings, noise)
    with _of(path / 'unet'):
      params = unet2d.params_from(state, net)
    where = next((path / n for n in ('vqvae', 'vae', 'autoencoder') if (path / n).is_dir()), path)
  else:
    state = files.weights(_one_file(path))
    fields = latent_unet.LatentUNet(**latent_unet.CIN256)
    fields = {f.name: getattr(fields, f.name) for f in dataclasses.fields(fields)}
    fields['num_classes'] = _classes(state, path)
    settings, noise = latent_settings(fields, 64, 'eps'), _LDM_NOISE
    where = _one_file(path)
    with _of(where):
      net = _network(settings, noise)
      ours = {id(a) for a in unet2d.ldm_renamed(state, net).values()}
      check_finite(where, {name: a for name, a in state.items() if id(a) in ours})
      params = unet2d.ldm_params_from(state, net)
  about = {
    'digest': digest(state), 'null_rule': f'row {settings.num_classes} of the class table',
    'head_order': 'q, k, v apart', 'epsilon': settings.epsilon,
  }  # fmt: skip
  found = autoencoders.read(autoencoder or where)
  return Teacher(kind, settings, noise, params, 'trained', None, found, None, about)


def _dit(path: pathlib.Path, kind: str, null: str, autoencoder: str, text: str) -> Any:
  """DiT or SiT of any size, whose shapes say which."""
  within = path / 'transformer'
  file = _one_file(within if within.is_dir() else path)
  whole = file.parent.parent if file.parent.name == 'transformer' else file.parent
  state = _state(file)
  with _of(path):
    params = dit.params_from(state)
  width = params['patch']['bias'].shape[0]
  patch, _, channels, _ = params['patch']['kernel'].shape
  out = params['final']['bias'].shape[0] // patch**2
  original, heads = dit.is_original(state), 16 if width == 1152 else width // 64
  # What lies beside a file with the authors' names need not be of it.
  beside = {p.name for p in whole.iterdir() if p.is_dir()} if path.is_dir() or not original else ()
  noise, predict = _DDPM_NOISE, 'eps'
  if kind == 'sit':
    noise, predict = recipes.Noise('cosine'), 'flow'
  if 'pos_embed' in state:
    size = round(state['pos_embed'].shape[1] ** 0.5) * patch
  else:
    config = read_json(file.with_name('config.json'))
    with _of(file.with_name('config.json')):
      size = _size(config, 32)
      if size % patch:
        folding.refuse('sample_size', size, f'a multiple of patch_size={patch}')
      heads = heads if original else dit.heads_from(config, params)
  if 'scheduler' in beside:
    if kind == 'sit':
      raise errors.ConfigError(
        f'{whole}/scheduler is of a network that is shown an index, as SiT is not; say --kind=dit'
      )
    noise, predict = _scheduler(whole)
  settings = recipes.Model(
    image_size=size, image_channels=channels,
    num_classes=len(params['label']['embedding']) - 1, channels=width, multipliers=(1,),
    num_blocks=sum(name.startswith('block') for name in params), attention_resolutions=(),
    emb_channels=width, heads=heads, head_dim=None, groups=1,
    dropout=0.0, w_features=256, w_scale=1000.0, dtype='float32',
    predict=predict, network='dit', patch=patch,
    time='linear' if kind == 'sit' else 'index',
    freq_shift=0.0 if original else 1.0,  # diffusers reads the same weights so
    cos_first=True, learned_sigma=out == 2 * channels,
  )  # fmt: skip
  with _of(path):
    _network(settings, noise)
  where = autoencoder or (str(whole / 'vae') if 'vae' in beside else '')
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

  def network_of(file, is_null):
    state = _state(file)
    with _of(file):
      params = adm.params_from(state, _network(settings, noise), size, order)
    if (adm.LABELS in state) == is_null:
      raise errors.ConfigError(
        f'{file} is {"no" if is_null else "the"} unconditional network, for it has '
        f'{"" if is_null else "no "}{adm.LABELS}; --source is the class-conditional one and --null '
        'the other'
      )
    return params, digest(state)

  params, of_params = network_of(_one_file(path), False)
  about = {
    'digest': of_params, 'epsilon': settings.epsilon,
    'head_order': 'q, k, v in thirds' if order == 'new' else 'q, k, v of each head in turn',
    'null_rule': 'none: it needs another, unconditional network',
  }  # fmt: skip
  if not null:
    return Teacher(kind, settings, noise, params, 'none', None, None, None, about)
  null_params, of_null = network_of(_one_file(pathlib.Path(null)), True)
  about |= {'null_rule': 'another network', 'null_digest': of_null}
  return Teacher(kind, settings, noise, params, 'network', null_params, None, None, about)


def _kind(path: pathlib.Path, text: str = '') -> str:
  """What a folder or a file holds, by its parts or names; DiT where it may be SiT."""
  if path.is_dir():
    if (path / 'unet').is_dir():
      return 'stable_diffusion' if text or (path / 'text_encoder').is_dir() else 'cin256'
    if (path / 'transformer').is_dir():
      return 'dit'
  names = set(files.names(_one_file(path)))
  for kind, name in _TOLD_BY:
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
  shape = np.shape(state[unet2d.CLASSES])
  if len(shape) != 2 or shape[0] < 2:
    raise errors.ConfigError(
      f'{path}: {unet2d.CLASSES} is {shape} and must be (classes + 1, width)'
    )
  return shape[0] - 1


def _part(path: pathlib.Path, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  return read_json(path / name / 'config.json'), _state(_one_file(path / name))


def _state(file: pathlib.Path) -> dict[str, np.ndarray]:
  state = files.weights(file)
  check_finite(file, state)
  return state


def check_finite(where: Any, state: Mapping[str, np.ndarray]) -> None:
  """DataError names the first array that is not finite, as float32, of what `where` holds."""
  for name, a in state.items():
    if not np.isfinite(np.asarray(a, np.float32)).all():
      raise errors.DataError(f'{where}: {name} is not finite: it is damaged; download it again')


def _check_frozen(found: Teacher, path: pathlib.Path, autoencoder: str, text: str) -> None:
  """Of the networks beside it: whether they are finite, and make such latents as it works on."""
  if found.text is not None:
    check_finite(text or path, traverse_util.flatten_dict(found.text.params, sep='.'))
  own = found.autoencoder
  if own is None:
    return
  where = f'--autoencoder={autoencoder}' if autoencoder else f"{path}'s autoencoder"
  check_finite(where, autoencoders.state_from(own.net, own.params))
  channels = found.settings.image_channels
  if own.latent_channels != channels:
    raise errors.ConfigError(
      f'{where} makes latents of {own.latent_channels} channels, and the network of {path} works '
      f'on {channels}; name its own with --autoencoder'
    )


def _scheduler(path: pathlib.Path) -> tuple[recipes.Noise, str]:
  """noise_from the scheduler/ of a folder."""
  file = path / 'scheduler' / 'scheduler_config.json'
  return noise_from(read_json(file), str(file))


def _size(config: Mapping[str, Any], default: int) -> int:
  """The side of the images that config.json speaks of."""
  size = config.get('sample_size')
  size = default if size is None else size
  side = size[0] if isinstance(size, list) and len(size) == 2 and size[0] == size[1] else size
  if not folding.is_count(side):
    raise errors.ConfigError(
      f'sample_size={size!r} must be a whole number of at least 1, or twice the same in a list'
    )
  return side


def _network(settings: recipes.Model, noise: recipes.Noise) -> networks.Network:
  """The network of these settings; ConfigError where a recipe could not have them."""
  recipe_checks.check_model(settings)
  recipe_checks.check_noise(noise)
  return networks.build(settings, False, noise_settings=noise)


@contextlib.contextmanager
def _of(where: pathlib.Path) -> Iterator[None]:
  """Errors begin with what they are of."""
  try:
    yield
  except errors.ConfigError as e:
    raise errors.ConfigError(f'{where}: {errors.brief(e)}') from e


def _one_file(path: pathlib.Path) -> pathlib.Path:
  """The safetensors of a folder, or the file itself; ConfigError or DataError where it is none."""
  return files.find(path, _WEIGHTS)


def read_json(file: pathlib.Path) -> dict[str, Any]:
  """The settings in a file; DataError where there are none."""
  try:
    found = json.loads(file.read_text(encoding='utf-8'))
  except OSError as e:
    raise errors.DataError(f'{file} cannot be read: {e.strerror}; download it') from e
  except (ValueError, RecursionError) as e:
    raise errors.DataError(f'{file} is damaged: {errors.brief(e)}; download it again') from e
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
