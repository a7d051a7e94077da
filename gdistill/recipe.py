"""A run's settings as frozen dataclasses, and every check that needs no data and no devices."""

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from gdistill import errors


@dataclasses.dataclass(frozen=True)
class Data:
  """Where images come from, and which of them training never sees."""

  name: Literal['digits', 'folder', 'records', 'tfds', 'captions', 'webdataset', 'tfds_captions']
  held_out: float  # share of the examples, the same for every class; 0: held_out_split
  path: str = ''  # the folder or archive; of 'tfds' its data_dir, '' for the usual one
  dataset: str = ''  # of 'tfds': which one; other sources do not look at it
  split: str = 'train'
  held_out_split: str = 'test'
  flip: bool = False  # left and right, half of the time
  workers: int = 0  # processes that read; 0 reads in threads of this one
  threads: int = 4  # of each process that reads
  prefetch: int = 2  # batches read ahead


@dataclasses.dataclass(frozen=True)
class Latents:
  """Latent space: what encodes pictures and captions, once and for all, and where that is kept.

  The image_size and image_channels of the model are then those of a latent.
  """

  autoencoder: str = ''  # its folder or files; '' trains on pixels
  text: str = ''  # the text encoder's folder, or the package that carries it
  text_length: int = 0  # tokens of a caption that are kept; 0: as many as the encoder takes
  template: str = 'a photo of a {}'  # captions of pictures that have a class alone
  cache: str = ''  # folder of what was encoded; '' is WORKDIR/latents
  batch_size: int = 64
  shard_size: int = 1024
  skip_corrupt: bool = False  # leaves out pictures that cannot be read
  masks: int = 4  # of an inpainting network: random masks of a flip, each encoded with its picture


@dataclasses.dataclass(frozen=True)
class Noise:
  """The noise schedule; the limits belong to 'cosine', the betas to the discrete ones.

  'squared_cosine' is the discrete one of a thousand betas that follow a cosine; it has no settings.
  """

  name: Literal['cosine', 'linear_beta', 'scaled_linear', 'squared_cosine']
  logsnr_min: float = -20.0
  logsnr_max: float = 20.0
  beta_start: float = 0.00085
  beta_end: float = 0.012


@dataclasses.dataclass(frozen=True)
class Model:
  """The network: models/unet.py, latent_unet.py and dit.py say what the keys mean.

  What has a default is of latent and of published networks. `channels` times `multipliers` are the
  widths of a U-Net; a DiT has `channels` wide blocks, `num_blocks` of them, and no multipliers.
  """

  image_size: int
  image_channels: int
  num_classes: int
  channels: int
  multipliers: tuple[int, ...]
  num_blocks: int
  attention_resolutions: tuple[int, ...]
  emb_channels: int
  heads: int | None
  head_dim: int | None
  groups: int
  dropout: float  # of the teacher; distillation uses none
  w_features: int
  w_scale: float
  dtype: Literal['float32', 'bfloat16']
  predict: Literal['x', 'eps', 'v', 'flow']
  network: Literal['unet', 'latent_unet', 'dit'] = 'unet'
  context: Literal['none', 'class', 'text'] = 'none'  # of 'latent_unet'
  context_dim: int = 0
  context_length: int = 0
  transformer_depth: int = 1
  linear_projection: bool = False
  extra_channels: int = 0  # image_channels + 1: a mask, and a masked picture, for inpainting
  patch: int = 2  # of 'dit'
  time: Literal['phi', 'index', 'linear'] = 'phi'  # what the network's time features are of
  epsilon: float = 1e-6
  freq_shift: float = 1.0
  cos_first: bool = False
  learned_sigma: bool = False


@dataclasses.dataclass(frozen=True)
class Training:
  """What every stage's optimisation is told. The learning rate decays within the round."""

  steps: int
  batch_size: int
  accumulation: int
  lr: float
  anneal: bool  # linear to zero over the round; otherwise constant
  warmup: int
  ema: float  # 0: none, the parameters themselves are handed on
  beta1: float
  beta2: float
  adam_eps: float
  weight_decay: float
  grad_clip: float
  weight: Literal['snr', 'snr_trunc', 'snr_plus_one']


@dataclasses.dataclass(frozen=True)
class Teacher(Training):
  p_uncond: float  # how often a label is dropped


@dataclasses.dataclass(frozen=True)
class Guidance(Training):
  w_min: float
  w_max: float  # equal to w_min: a single-w student, which takes no w
  ws_per_pass: int
  state: Literal['data', 'trajectory']
  trajectory_steps: int
  one_batch: bool  # conditional and null pass as one batch of 2B; pays on accelerators
  w_power: float = 0.0  # the loss is divided by (1 + w)^w_power; 0 is the paper
  clip_x_hat: bool = False  # compare x_hat as samplers clip it; False is the paper


@dataclasses.dataclass(frozen=True)
class Progressive(Training):
  start_steps: int
  end_steps: int
  sampler: Literal['deterministic', 'stochastic']
  state: Literal['data', 'trajectory']
  last_steps: int  # training steps of the rounds for 2 and 1 sampling steps
  last_lr: float  # and their learning rate: they have far to go, the others only a little
  w_power: float = 0.0  # as in guidance
  clip_x_hat: bool = False  # as in guidance, and the teacher's two steps clip too


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Devices: batch rows over all of them, large parameters over fsdp, what only the optimiser
  needs over fsdp and data. One of data and fsdp may be -1: what is left of a slice.
  """

  data: int
  fsdp: int
  slices: int = 1  # TPU slices, or whatever a slow network joins
  cpu_devices: int = 1  # how many devices to make of a CPU, whatever its number of cores


@dataclasses.dataclass(frozen=True)
class Train:
  """The loop itself."""

  substeps: int  # updates per dispatch on accelerators; a CPU always runs one
  checkpoint_every: int
  max_to_keep: int
  log_every: int
  max_skipped_in_a_row: int
  max_skipped_percent: float
  remat: Literal['none', 'blocks'] = 'none'  # 'blocks': a fifth more work, far less memory
  stall_seconds: float = 300.0  # without an update, then it leaves with 134; 0: never


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The w x N grid, in two sizes."""

  ws: tuple[float, ...]
  num_steps: tuple[int, ...]
  quick_images: int
  quick_reference_steps: int
  full_images: int
  full_reference_steps: int
  batch_size: int
  real_images: int = 10_000  # training and held-out images to measure with, at most so many each
  extractor: Literal['classifier', 'inception', 'lite0', 'clip_b32', 'clip_l14'] = 'classifier'
  weights: str = ''  # of a public extractor: its file, '' for where gdistill convert puts it
  keep_images: int = 2_000  # pictures of a cell that are kept
  bank: int = 10_000  # pictures of a cell whose features have neighbours: precision, recall, KID


STAGES = ('teacher', 'guidance', 'progressive')


@dataclasses.dataclass(frozen=True)
class Recipe:
  """One run: which stages, from what, and every number they need.

  `stages` is a consecutive part of teacher, guidance, progressive, or (teacher, progressive) for
  the naive baseline; what does not begin with a teacher begins from the round in `initial`. A
  teacher may: it then starts from that teacher's parameters, which may predict something else.
  `encoder` adds a second ladder from stage one's student, from data to noise, with the settings of
  `progressive`; it may then be all there is, with no stages.
  """

  seed: int
  stages: tuple[str, ...]
  initial: str
  data: Data
  noise: Noise
  model: Model
  teacher: Teacher
  guidance: Guidance
  progressive: Progressive
  mesh: Mesh
  train: Train
  evaluation: Evaluation
  latents: Latents = Latents()
  encoder: bool = False  # an encoder ladder beside the decoder's, always deterministic

  def settings(self, stage: str) -> Training:
    """What the rounds of a stage are trained with: an encoder ladder has the decoder's."""
    return getattr(self, 'progressive' if stage == 'encoder' else stage)

  @property
  def sections(self) -> tuple[str, ...]:
    """Where the settings of all rounds are."""
    ladder = ('progressive',) if self.encoder and 'progressive' not in self.stages else ()
    return self.stages + ladder

  @property
  def latent(self) -> bool:
    """Whether the networks see latents, not pixels."""
    return bool(self.latents.autoencoder)

  @property
  def inpainting(self) -> bool:
    """Whether the networks are shown a mask and what it leaves of a picture."""
    return self.model.extra_channels > 0

  @property
  def naive(self) -> bool:
    """Halve the unguided network and guide afterwards."""
    return self.stages == ('teacher', 'progressive')

  @property
  def single_w(self) -> bool:
    return self.guidance.w_min == self.guidance.w_max

  @property
  def takes_w(self) -> bool:
    """Whether the students have an input for w."""
    return not self.naive and not self.single_w


# What may change between two starts of one run. Nothing here reaches the parameters, but for the
# mesh and remat, which decide their last bits.
MAY_CHANGE = (
  'train.checkpoint_every',
  'train.max_to_keep',
  'train.log_every',
  'train.remat',
  'train.stall_seconds',
  'data.path',
  'latents.autoencoder',
  'latents.text',
  'latents.cache',
  'latents.batch_size',
  'latents.skip_corrupt',
  'data.workers',
  'data.threads',
  'data.prefetch',
  'mesh',
  'evaluation',
  'encoder',  # adds rounds behind all others, or leaves them out
)


def from_config(config: Mapping[str, Any]) -> Recipe:
  """A checked Recipe from a ConfigDict or a plain dict; ConfigError names what is wrong."""
  plain = config.to_dict() if hasattr(config, 'to_dict') else config
  recipe = _build(Recipe, plain, '')
  _check(recipe)
  return recipe


def to_dict(recipe: Recipe) -> dict:
  """The resolved config: plain JSON types, every key."""
  return json.loads(json.dumps(dataclasses.asdict(recipe)))


def digest(recipe: Recipe) -> str:
  """A hash of everything that must not change between two starts of a run."""
  fields = {k: v for k, v in flat(to_dict(recipe)).items() if not _may_change(k)}
  return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def digest_together(recipe: Recipe) -> str:
  """A hash of everything that must be the same in all processes of one start: but for how each
  reads its data, all of it.
  """
  own = {f'data.{name}' for name in ('path', 'workers', 'threads', 'prefetch')}
  own |= {f'latents.{name}' for name in ('autoencoder', 'text', 'cache')}
  fields = {k: v for k, v in flat(to_dict(recipe)).items() if k not in own}
  return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """'field: old -> new' for each field that differs and may not."""
  a, b = flat(old), flat(new)
  keys = [k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k) and not _may_change(k)]
  return [f'{k}: {a.get(k)!r} -> {b.get(k)!r}' for k in keys]


def flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """{'a': {'b': 1}} -> {'a.b': 1}."""
  out = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      out |= flat(value, f'{prefix}{key}.')
    else:
      out[prefix + key] = value
  return out


def _may_change(key: str) -> bool:
  return any(key == name or key.startswith(name + '.') for name in MAY_CHANGE)


def _build(kind: type, values: Any, prefix: str) -> Any:
  where = prefix[:-1] or 'config'
  if not isinstance(values, Mapping):
    raise errors.ConfigError(f'{where}={values!r} must be a section of keys')
  fields = {f.name: f for f in dataclasses.fields(kind)}
  hints = typing.get_type_hints(kind)
  for key in values:
    if key not in fields:
      raise errors.ConfigError(_unknown(key, prefix, fields))
  out = {}
  for name, field in fields.items():
    if name in values:
      if dataclasses.is_dataclass(hints[name]):
        out[name] = _build(hints[name], values[name], f'{prefix}{name}.')
      else:
        out[name] = _typed(hints[name], values[name], prefix + name)
    elif field.default is dataclasses.MISSING:
      raise errors.ConfigError(f'{prefix}{name} is missing; configs/digits.py shows every key')
  return kind(**out)


def _unknown(key: str, prefix: str, fields: Mapping[str, Any]) -> str:
  homes = [
    f'{f.name}.{key}'
    for f in dataclasses.fields(Recipe)
    if dataclasses.is_dataclass(f.type) and key in {g.name for g in dataclasses.fields(f.type)}
  ]
  if homes:
    return f'unknown key {prefix}{key}; did you mean {" or ".join(homes)}?'
  near = difflib.get_close_matches(str(key), fields, 1, 0.4)
  hint = f'did you mean {prefix}{near[0]}?' if near else f'known keys: {", ".join(fields)}'
  return f'unknown key {prefix}{key}; {hint}'


def _typed(hint: Any, value: Any, name: str) -> Any:
  origin = typing.get_origin(hint)
  if origin is Literal:
    choices = typing.get_args(hint)
    if value not in choices or isinstance(value, bool):
      raise errors.ConfigError(f'{name}={value!r} must be one of {", ".join(map(str, choices))}')
    return value
  if origin is types.UnionType:
    inner = next(a for a in typing.get_args(hint) if a is not type(None))
    return None if value is None else _typed(inner, value, name)
  if origin is tuple:
    if not isinstance(value, (tuple, list)):
      raise errors.ConfigError(f'{name}={value!r} must be a list')
    inner = typing.get_args(hint)[0]
    return tuple(_typed(inner, v, f'{name}[{i}]') for i, v in enumerate(value))
  if hint is float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not abs(value) < 1e300:  # also nan, inf and integers no float can hold
      raise errors.ConfigError(f'{name}={value!r} must be a finite number')
    return float(value)
  if hint is int and (isinstance(value, bool) or not isinstance(value, int)):
    raise errors.ConfigError(f'{name}={value!r} must be a whole number')
  if hint in (bool, str) and not isinstance(value, hint):
    kind = 'True or False' if hint is bool else 'a string'
    raise errors.ConfigError(f'{name}={value!r} must be {kind}')
  return value


def _need(ok: bool, name: str, value: Any, remedy: str) -> None:
  if not ok:
    raise errors.ConfigError(f'{name}={value!r} {remedy}')


def _check(recipe: Recipe) -> None:
  _need(0 <= recipe.seed < 2**32, 'seed', recipe.seed, 'must be from 0 to 2**32 - 1')
  _check_stages(recipe)
  _check_data(recipe.data)
  _check_latents(recipe)
  check_noise(recipe.noise)
  check_model(recipe.model)
  for name in STAGES:
    _check_training(name, getattr(recipe, name), recipe.train)
  _check_distillation(recipe)
  _check_mesh(recipe.mesh)
  _check_loop(recipe.train)
  _check_evaluation(recipe.evaluation)


def _check_stages(recipe: Recipe) -> None:
  stages, allowed = recipe.stages, [STAGES[a:b] for a in range(3) for b in range(a + 1, 4)]
  allowed.append(('teacher', 'progressive'))
  choices = '; '.join(', '.join(a) for a in allowed)
  _need(
    stages in allowed or (recipe.encoder and not stages), 'stages', stages,
    f'must be one of: {choices}; with encoder=True also ()',
  )  # fmt: skip
  if stages[:1] != ('teacher',):
    why = f'begins with {stages[0]}' if stages else 'is empty'
    _need(
      bool(recipe.initial), 'initial', recipe.initial,
      f'must name the folder of a finished round, because stages {why}',
    )  # fmt: skip
  elif recipe.encoder:
    _need(
      'guidance' in stages, 'encoder', recipe.encoder,
      f'needs a student of stage one, which stages={stages} has not; put guidance among them or '
      'set encoder=False',
    )  # fmt: skip


def _check_data(data: Data) -> None:
  share = data.held_out
  _need(0 <= share < 1, 'data.held_out', share, 'must be at least 0 and below 1')
  if data.name == 'digits':
    _need(share > 0, 'data.held_out', share, 'must be above 0: the digits have no second split')
  if data.name in ('folder', 'records', 'captions', 'webdataset'):
    _need(bool(data.path), 'data.path', data.path, f'must be given with data.name={data.name!r}')
    _need('://' not in data.path, 'data.path', data.path, 'must be a local path; copy or mount it')
  if data.name in ('tfds', 'tfds_captions'):
    _need(bool(data.dataset), 'data.dataset', data.dataset, 'must be a TensorFlow Datasets name')
  for name, low, high in (('workers', 0, 256), ('threads', 1, 256), ('prefetch', 1, 1024)):
    value = getattr(data, name)
    _need(low <= value <= high, f'data.{name}', value, f'must be from {low} to {high}')


def _check_latents(recipe: Recipe) -> None:
  latents = recipe.latents
  for name in ('autoencoder', 'text', 'cache'):
    value = getattr(latents, name)
    _need('://' not in value, f'latents.{name}', value, 'must be a local path; copy or mount it')
  for name, low in (('batch_size', 1), ('shard_size', 1), ('text_length', 0), ('masks', 1)):
    value = getattr(latents, name)
    _need(low <= value < 2**20, f'latents.{name}', value, f'must be from {low} to {2**20 - 1}')
  _need(
    not (recipe.latent and recipe.data.name == 'digits'), 'data.name', recipe.data.name,
    'must be of coloured pictures with latents.autoencoder',
  )  # fmt: skip
  text = recipe.model.context == 'text'
  _need(
    not text or latents.template.count('{}') == 1, 'latents.template', latents.template,
    'must have one {} where the name of a class goes',
  )  # fmt: skip
  _need(
    not latents.text or recipe.latent, 'latents.text', latents.text,
    'needs latents.autoencoder: text-conditional networks work on latents here',
  )  # fmt: skip
  _need(
    bool(latents.text) == (recipe.latent and text), 'latents.text', latents.text,
    f"must {'name the text encoder' if text else 'be empty'} with model.context="
    f'{recipe.model.context!r}',
  )  # fmt: skip
  for stage in ('guidance', 'progressive'):
    clip = getattr(recipe, stage).clip_x_hat
    _need(
      not (clip and recipe.latent), f'{stage}.clip_x_hat', clip,
      'must be False with latents.autoencoder: latents have no range to be clipped to',
    )  # fmt: skip


def check_noise(noise: Noise) -> None:
  """ConfigError names what cannot be a schedule."""
  _need(
    noise.logsnr_min < noise.logsnr_max, 'noise.logsnr_min', noise.logsnr_min,
    f'must be below noise.logsnr_max={noise.logsnr_max}',
  )  # fmt: skip
  for name in ('beta_start', 'beta_end'):
    value = getattr(noise, name)
    _need(0 < value < 1, f'noise.{name}', value, 'must lie between 0 and 1')


def check_model(model: Model) -> None:
  """ConfigError names what cannot be a network."""
  for name in ('image_size', 'image_channels', 'num_classes', 'num_blocks', 'groups', 'patch'):
    _need(getattr(model, name) >= 1, f'model.{name}', getattr(model, name), 'must be at least 1')
  for name in ('channels', 'emb_channels', 'w_features'):
    value = getattr(model, name)
    _need(value >= 4 and value % 2 == 0, f'model.{name}', value, 'must be even and at least 4')
  one = (model.heads is None) != (model.head_dim is None)
  _need(
    one, 'model.heads', model.heads, f'or model.head_dim={model.head_dim} must be None, not both'
  )
  if model.network == 'dit':
    _check_heads(model, model.channels)
    _need(
      model.image_size % model.patch == 0, 'model.patch', model.patch,
      f'must divide model.image_size={model.image_size}',
    )  # fmt: skip
  else:
    _check_levels(model)
  _check_context(model)
  _need(0 <= model.dropout < 1, 'model.dropout', model.dropout, 'must be at least 0 and below 1')
  for name in ('w_scale', 'epsilon'):
    _need(getattr(model, name) > 0, f'model.{name}', getattr(model, name), 'must be above 0')


def _check_levels(model: Model) -> None:
  """What a U-Net's resolutions and widths ask for."""
  _need(
    bool(model.multipliers) and min(model.multipliers) >= 1, 'model.multipliers',
    model.multipliers, 'must list a width multiplier of at least 1 for every resolution',
  )  # fmt: skip
  step = 2 ** (len(model.multipliers) - 1)
  _need(
    model.image_size % step == 0, 'model.image_size', model.image_size,
    f'must be divisible by {step}: {len(model.multipliers)} multipliers halve it '
    f'{len(model.multipliers) - 1} times',
  )  # fmt: skip
  reached = [model.image_size // 2**i for i in range(len(model.multipliers))]
  for resolution in model.attention_resolutions:
    _need(
      resolution in reached, 'model.attention_resolutions', model.attention_resolutions,
      f'names {resolution}, which is never reached; the network works at {reached}',
    )  # fmt: skip
  widths = [model.channels, *(model.channels * m for m in model.multipliers)]
  for width in widths:
    _need(
      width % model.groups == 0, 'model.groups', model.groups,
      f'must divide the width {width} of every resolution ({widths})',
    )  # fmt: skip
    _check_heads(model, width)


def _check_heads(model: Model, width: int) -> None:
  for name in ('heads', 'head_dim'):
    value = getattr(model, name)
    if value is not None:
      _need(value >= 1, f'model.{name}', value, 'must be at least 1, or None')
      _need(width % value == 0, f'model.{name}', value, f'must divide the width {width}')


def _check_context(model: Model) -> None:
  only = model.network == 'latent_unet'
  _need(
    model.context == 'none' or only, 'model.context', model.context,
    f"must be 'none' with model.network={model.network!r}: only 'latent_unet' attends to one",
  )  # fmt: skip
  needed = {'context_dim': model.context != 'none', 'context_length': model.context == 'text'}
  for name, need in needed.items():
    value = getattr(model, name)
    _need(
      (value >= 1) if need else (value == 0), f'model.{name}', value,
      f'must be {"at least 1" if need else "0"} with model.context={model.context!r}',
    )  # fmt: skip
  _need(model.transformer_depth >= 1, 'model.transformer_depth', model.transformer_depth,
        'must be at least 1')  # fmt: skip
  inpainting = model.image_channels + 1
  _need(
    model.extra_channels in (0, inpainting), 'model.extra_channels', model.extra_channels,
    f'must be 0, or {inpainting} for inpainting: a mask and model.image_channels='
    f'{model.image_channels}',
  )  # fmt: skip
  _need(
    model.network != 'dit' or not model.extra_channels, 'model.extra_channels',
    model.extra_channels, "must be 0 with model.network='dit', which has no such input",
  )  # fmt: skip


def _check_training(section: str, t: Training, train: Train) -> None:
  for name in ('steps', 'batch_size', 'accumulation'):
    _need(getattr(t, name) >= 1, f'{section}.{name}', getattr(t, name), 'must be at least 1')
  _need(
    t.batch_size % t.accumulation == 0, f'{section}.batch_size', t.batch_size,
    f'must be divisible by {section}.accumulation={t.accumulation}',
  )  # fmt: skip
  _need(t.lr > 0, f'{section}.lr', t.lr, 'must be above 0')
  _need(
    0 <= t.warmup <= t.steps, f'{section}.warmup', t.warmup,
    f'must be from 0 to {section}.steps={t.steps}',
  )  # fmt: skip
  for name in ('ema', 'beta1', 'beta2'):
    value = getattr(t, name)
    _need(0 <= value < 1, f'{section}.{name}', value, 'must be at least 0 and below 1')
  for name in ('adam_eps', 'grad_clip'):
    _need(getattr(t, name) > 0, f'{section}.{name}', getattr(t, name), 'must be above 0')
  _need(t.weight_decay >= 0, f'{section}.weight_decay', t.weight_decay, 'must be at least 0')
  counts = {f'{section}.steps': t.steps}
  if isinstance(t, Progressive):
    counts[f'{section}.last_steps'] = t.last_steps
    _need(t.last_lr > 0, f'{section}.last_lr', t.last_lr, 'must be above 0')
    _need(t.last_steps >= 1, f'{section}.last_steps', t.last_steps, 'must be at least 1')
    _need(
      t.warmup <= t.last_steps, f'{section}.warmup', t.warmup,
      f'must be from 0 to {section}.last_steps={t.last_steps}',
    )  # fmt: skip
  for name, steps in counts.items():
    _need(
      train.substeps >= 1 and steps % train.substeps == 0, 'train.substeps', train.substeps,
      f'must be at least 1 and divide {name}={steps}',
    )  # fmt: skip


def _check_distillation(recipe: Recipe) -> None:
  teacher, guidance, progressive = recipe.teacher, recipe.guidance, recipe.progressive
  p = teacher.p_uncond
  _need(0 <= p < 1, 'teacher.p_uncond', p, 'must be at least 0 and below 1')
  if {'guidance', 'teacher'} <= set(recipe.stages) or recipe.naive:
    _need(p > 0, 'teacher.p_uncond', p, 'must be above 0: guidance needs a trained null class')
  _need(guidance.w_min >= 0, 'guidance.w_min', guidance.w_min, 'must be at least 0')
  _need(
    guidance.w_min <= guidance.w_max, 'guidance.w_min', guidance.w_min,
    f'must not be above guidance.w_max={guidance.w_max}',
  )  # fmt: skip
  for section in (s for s in ('guidance', 'progressive') if s in recipe.sections):
    name, value = f'{section}.w_power', getattr(recipe, section).w_power
    _need(0 <= value <= 8, name, value, 'must be from 0 to 8')
    _need(
      recipe.takes_w or not value,
      name,
      value,
      'must be 0 where students take no w: the naive baseline, and guidance.w_min = guidance.w_max',
    )
  for name in ('ws_per_pass', 'trajectory_steps'):
    value = getattr(guidance, name)
    _need(value >= 1, f'guidance.{name}', value, 'must be at least 1')
  _need(
    not (recipe.naive and progressive.clip_x_hat), 'progressive.clip_x_hat', progressive.clip_x_hat,
    'must be False for the naive baseline: guiding its students reaches beyond the edges',
  )  # fmt: skip
  if {'guidance', 'progressive'} <= set(recipe.sections) and guidance.clip_x_hat:
    _need(
      progressive.clip_x_hat, 'progressive.clip_x_hat', progressive.clip_x_hat,
      'must be True where guidance.clip_x_hat is: beyond the edges its student was taught nothing',
    )  # fmt: skip
  _need(
    not recipe.encoder or recipe.model.predict != 'x', 'model.predict', recipe.model.predict,
    'must be another with encoder=True: encoding begins at t = 0, where an estimate of x says '
    'nothing about noise',
  )  # fmt: skip
  start, end = progressive.start_steps, progressive.end_steps
  _need(end >= 1, 'progressive.end_steps', end, 'must be at least 1')
  ratio = start // end if start % end == 0 else 0
  _need(
    ratio >= 2 and ratio & (ratio - 1) == 0, 'progressive.start_steps', start,
    f'must be progressive.end_steps={end} times a power of two (at least 2)',
  )  # fmt: skip
  _need(
    recipe.model.time != 'index' or recipe.noise.name != 'cosine', 'model.time', recipe.model.time,
    "must be 'phi' with noise.name='cosine', which has no indices",
  )  # fmt: skip
  if recipe.noise.name != 'cosine':
    _need(start <= 512, 'progressive.start_steps', start, f'must be at most 512 with noise.name='
          f'{recipe.noise.name!r}: its thousand steps have no half steps below that')  # fmt: skip


def _check_mesh(mesh: Mesh) -> None:
  count = mesh.cpu_devices
  _need(1 <= count <= 64, 'mesh.cpu_devices', count, 'must be from 1 to 64')
  _need(mesh.slices >= 1, 'mesh.slices', mesh.slices, 'must be at least 1')
  for name in ('data', 'fsdp'):
    value = getattr(mesh, name)
    _need(
      value >= 1 or value == -1, f'mesh.{name}', value, 'must be at least 1, or -1 for the rest'
    )
  _need(
    (mesh.data, mesh.fsdp) != (-1, -1), 'mesh.data', mesh.data,
    'and mesh.fsdp=-1 cannot both be -1; give one of them a size',
  )  # fmt: skip


def _check_loop(train: Train) -> None:
  for name in ('checkpoint_every', 'max_to_keep', 'log_every', 'max_skipped_in_a_row'):
    _need(getattr(train, name) >= 1, f'train.{name}', getattr(train, name), 'must be at least 1')
  stall = train.stall_seconds
  _need(
    stall == 0 or stall >= 1, 'train.stall_seconds', stall, 'must be at least 1, or 0 for never'
  )
  percent = train.max_skipped_percent
  _need(0 < percent <= 100, 'train.max_skipped_percent', percent, 'must be above 0, at most 100')
  for name in ('checkpoint_every', 'log_every'):
    _need(
      getattr(train, name) % train.substeps == 0, f'train.{name}', getattr(train, name),
      f'must be a multiple of train.substeps={train.substeps}',
    )  # fmt: skip


def _check_evaluation(e: Evaluation) -> None:
  for name in ('quick_images', 'full_images'):
    value = getattr(e, name)
    _need(
      4 <= value < 2**31, f'evaluation.{name}', value,
      'must be at least 4: precision and recall look at 3 neighbours',
    )  # fmt: skip
  _need(4 <= e.real_images < 2**31, 'evaluation.real_images', e.real_images, 'must be at least 4')
  _need(e.batch_size >= 1, 'evaluation.batch_size', e.batch_size, 'must be at least 1')
  for name in ('keep_images', 'bank'):
    value = getattr(e, name)
    _need(0 <= value < 2**31, f'evaluation.{name}', value, 'must be at least 0')
  for name in ('quick_reference_steps', 'full_reference_steps'):
    value = getattr(e, name)
    _need(1 <= value <= 100_000, f'evaluation.{name}', value, 'must be from 1 to 100000')
  _need(bool(e.ws) and min(e.ws) >= 0, 'evaluation.ws', e.ws, 'must list strengths of at least 0')
  _need(
    bool(e.num_steps) and min(e.num_steps) >= 1 and max(e.num_steps) <= 100_000,
    'evaluation.num_steps', e.num_steps, 'must list step counts from 1 to 100000',
  )  # fmt: skip
