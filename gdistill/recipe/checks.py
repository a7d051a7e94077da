"""Checks the values of a recipe's keys, and combinations of keys, without data or devices."""

from typing import Any

from gdistill import errors
from gdistill.recipe import settings as recipes

# Largest guidance strength w; drawing.sampling.MOST_W is the same limit and has the reason.
MOST_W = 1000.0


def _need(ok: bool, name: str, value: Any, remedy: str) -> None:
  """Raises ConfigError with the line 'name=value remedy' if `ok` is False."""
  if not ok:
    raise errors.ConfigError(f'{name}={value!r} {remedy}')


def check_recipe(recipe: recipes.Recipe) -> None:
  """Raises ConfigError for the first key that is out of limits; the error says what to do."""
  _need(0 <= recipe.seed < 2**32, 'seed', recipe.seed, 'must be from 0 to 2**32 - 1')
  _check_stages(recipe)
  _check_data(recipe.data)
  _check_map(recipe)
  _check_latents(recipe)
  check_noise(recipe.noise)
  check_model(recipe.model)
  check_predict(recipe.model, recipe.noise)
  for name in recipes.STAGES:
    _check_training(name, getattr(recipe, name), recipe.train)
  _check_distillation(recipe)
  _check_mesh(recipe.mesh)
  _check_loop(recipe.train)
  _check_evaluation(recipe.evaluation, recipe.noise)


def _check_stages(recipe: recipes.Recipe) -> None:
  stages, allowed = recipe.stages, [recipes.STAGES[a:b] for a in range(3) for b in range(a + 1, 4)]
  allowed.append(('teacher', 'progressive'))
  choices = '; '.join(', '.join(a) for a in allowed)
  _need(
    stages in allowed or (recipe.encoder and not stages), 'stages', stages,
    f'must be one of: {choices}; or, with encoder=True, ()',
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
      f"needs a round of stage one, and stages={stages} does not contain 'guidance'; add "
      "'guidance' to stages or set encoder=False",
    )  # fmt: skip


def _check_data(data: recipes.Data) -> None:
  share = data.held_out
  _need(0 <= share < 1, 'data.held_out', share, 'must be at least 0 and below 1')
  if data.name == 'digits':
    _need(share > 0, 'data.held_out', share, 'must be above 0: digits has no held-out split')
  if data.name in ('folder', 'records', 'captions', 'webdataset'):
    _need(
      bool(data.path), 'data.path', data.path,
      f'must name the folder or the files of the data with data.name={data.name!r}',
    )  # fmt: skip
    _need(
      '://' not in data.path, 'data.path', data.path,
      'must be a local path; copy the data to a disk of this machine, or mount the bucket',
    )  # fmt: skip
  if data.name in ('tfds', 'tfds_captions'):
    _need(
      bool(data.dataset), 'data.dataset', data.dataset,
      f'must name a data set of TensorFlow Datasets with data.name={data.name!r}',
    )  # fmt: skip
  for name, low, high in (('workers', 0, 256), ('threads', 1, 256), ('prefetch', 1, 1024)):
    value = getattr(data, name)
    _need(low <= value <= high, f'data.{name}', value, f'must be from {low} to {high}')


def _check_map(recipe: recipes.Recipe) -> None:
  """Raises ConfigError if the map of classes has no teacher, or a teacher without classes."""
  file = recipe.data.classes
  _need(
    not file or bool(recipe.initial), 'data.classes', file,
    "names the classes of the round in initial, and initial=''; leave data.classes out, or set "
    'initial to the folder of the teacher',
  )  # fmt: skip
  _need(
    not file or recipe.model.context != 'text', 'data.classes', file,
    "must be '' with model.context='text': a network that reads text has no numbers of classes",
  )  # fmt: skip


def _check_latents(recipe: recipes.Recipe) -> None:
  latents = recipe.latents
  for name in ('autoencoder', 'text', 'cache'):
    value = getattr(latents, name)
    _need(
      '://' not in value, f'latents.{name}', value,
      'must be a local path; copy the folder to a disk of this machine, or mount the bucket',
    )  # fmt: skip
  for name, low in (('batch_size', 1), ('shard_size', 1), ('text_length', 0), ('masks', 1)):
    value = getattr(latents, name)
    _need(low <= value < 2**20, f'latents.{name}', value, f'must be from {low} to {2**20 - 1}')
  _need(
    not (recipe.latent and recipe.data.name == 'digits'), 'data.name', recipe.data.name,
    'has grey pictures, which latents.autoencoder cannot encode; set data.name to another data set',
  )  # fmt: skip
  text = recipe.model.context == 'text'
  _need(
    not text or latents.template.count('{}') == 1, 'latents.template', latents.template,
    "must contain {} once, where the class name belongs, for example 'a photo of a {}'",
  )  # fmt: skip
  _need(
    not latents.text or recipe.latent, 'latents.text', latents.text,
    'needs latents.autoencoder: networks with text work on latents only; set both keys or neither',
  )  # fmt: skip
  _need(
    bool(latents.text) == (recipe.latent and text), 'latents.text', latents.text,
    f"must {'name the folder of the text encoder' if text else 'be empty'} with model.context="
    f'{recipe.model.context!r}',
  )  # fmt: skip
  for stage in ('guidance', 'progressive'):
    clip = getattr(recipe, stage).clip_x_hat
    _need(
      not (clip and recipe.latent), f'{stage}.clip_x_hat', clip,
      'must be False with latents.autoencoder: latents have no range to clip x_hat to',
    )  # fmt: skip


def check_noise(noise: recipes.Noise) -> None:
  """Raises ConfigError if a noise schedule cannot be built from the settings `noise`."""
  _need(
    noise.logsnr_min < noise.logsnr_max, 'noise.logsnr_min', noise.logsnr_min,
    f'must be below noise.logsnr_max={noise.logsnr_max}',
  )  # fmt: skip
  for name in ('beta_start', 'beta_end'):
    value = getattr(noise, name)
    _need(0 < value < 1, f'noise.{name}', value, 'must be above 0 and below 1')
  zero = noise.zero_terminal_snr
  _need(noise.name != 'cosine' or not zero, 'noise.zero_terminal_snr', zero,
        "must be False with noise.name='cosine', a schedule without betas")  # fmt: skip


def check_model(model: recipes.Model) -> None:
  """Raises ConfigError if a network cannot be built from the settings `model`."""
  for name in ('image_size', 'image_channels', 'num_classes', 'num_blocks', 'groups', 'patch'):
    _need(getattr(model, name) >= 1, f'model.{name}', getattr(model, name), 'must be at least 1')
  for name in ('channels', 'emb_channels', 'w_features'):
    value = getattr(model, name)
    _need(value >= 4 and value % 2 == 0, f'model.{name}', value, 'must be even and at least 4')
  one = (model.heads is None) != (model.head_dim is None)
  _need(
    one, 'model.heads', model.heads,
    f'and model.head_dim={model.head_dim!r}: one of the two must be a number and the other None',
  )  # fmt: skip
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
  most = model.image_channels
  _need(0 <= model.guided_channels <= most, 'model.guided_channels', model.guided_channels,
        f'must be from 0, which means all, to model.image_channels={most}')  # fmt: skip
  for name in ('w_scale', 'epsilon'):
    _need(getattr(model, name) > 0, f'model.{name}', getattr(model, name), 'must be above 0')


def check_predict(model: recipes.Model, noise: recipes.Noise) -> None:
  """Raises ConfigError if a network predicts eps on a schedule that ends at pure noise."""
  _need(model.predict != 'eps' or not noise.zero_terminal_snr, 'model.predict', model.predict,
        "must be 'v', 'x' or 'flow' with noise.zero_terminal_snr=True: at t = 1 alpha is 0, and v "
        '= (eps - sigma z) / alpha does not exist')  # fmt: skip


def _check_levels(model: recipes.Model) -> None:
  """Raises ConfigError if image size, widths, groups and heads of a U-Net do not fit together."""
  _need(
    bool(model.multipliers) and min(model.multipliers) >= 1, 'model.multipliers',
    model.multipliers, 'must list a width multiplier of at least 1 for every resolution',
  )  # fmt: skip
  step = 2 ** (len(model.multipliers) - 1)
  _need(
    model.image_size % step == 0, 'model.image_size', model.image_size,
    f'must be divisible by {step}: a network with {len(model.multipliers)} multipliers halves the '
    f'image {len(model.multipliers) - 1} times',
  )  # fmt: skip
  reached = [model.image_size // 2**i for i in range(len(model.multipliers))]
  for resolution in model.attention_resolutions:
    _need(
      resolution in reached, 'model.attention_resolutions', model.attention_resolutions,
      f'contains {resolution}, and the network has the resolutions {reached}; choose from these',
    )  # fmt: skip
  widths = [model.channels, *(model.channels * m for m in model.multipliers)]
  for width in widths:
    _need(
      width % model.groups == 0, 'model.groups', model.groups,
      f'must divide the width {width} and all other widths of the network: {widths}',
    )  # fmt: skip
    _check_heads(model, width)


def _check_heads(model: recipes.Model, width: int) -> None:
  for name in ('heads', 'head_dim'):
    value = getattr(model, name)
    if value is not None:
      _need(value >= 1, f'model.{name}', value, 'must be at least 1, or None')
      _need(width % value == 0, f'model.{name}', value, f'must divide the width {width} of a layer')


def _check_context(model: recipes.Model) -> None:
  only = model.network == 'latent_unet'
  _need(
    model.context == 'none' or only, 'model.context', model.context,
    f"must be 'none' with model.network={model.network!r}: only 'latent_unet' has cross-attention",
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
    f'must be 0, or {inpainting} for inpainting: 1 for the mask and model.image_channels='
    f'{model.image_channels} for the masked picture',
  )  # fmt: skip
  _need(
    model.network != 'dit' or not model.extra_channels, 'model.extra_channels',
    model.extra_channels, "must be 0 with model.network='dit', which takes no extra channels",
  )  # fmt: skip


def _check_training(section: str, t: recipes.Training, train: recipes.Train) -> None:
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
  if isinstance(t, recipes.Progressive):
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


def _check_distillation(recipe: recipes.Recipe) -> None:
  teacher, guidance, progressive = recipe.teacher, recipe.guidance, recipe.progressive
  p = teacher.p_uncond
  _need(0 <= p < 1, 'teacher.p_uncond', p, 'must be at least 0 and below 1')
  if {'guidance', 'teacher'} <= set(recipe.stages) or recipe.naive:
    _need(
      p > 0, 'teacher.p_uncond', p,
      'must be above 0: only dropped labels train the null condition that guidance needs',
    )  # fmt: skip
  _need(guidance.w_min >= 0, 'guidance.w_min', guidance.w_min, 'must be at least 0')
  _need(guidance.w_max <= MOST_W, 'guidance.w_max', guidance.w_max, f'must be at most {MOST_W:g}')
  _need(
    guidance.w_min <= guidance.w_max, 'guidance.w_min', guidance.w_min,
    f'must not be above guidance.w_max={guidance.w_max}',
  )  # fmt: skip
  for section in (s for s in ('guidance', 'progressive') if s in recipe.sections):
    name, value = f'{section}.w_power', getattr(recipe, section).w_power
    _need(0 <= value <= 8, name, value, 'must be from 0 to 8')
    _need(
      recipe.takes_w or not value, name, value,
      'must be 0 if students take no w (in the naive baseline, or if guidance.w_min equals '
      'guidance.w_max)',
    )  # fmt: skip
  for name in ('ws_per_pass', 'trajectory_steps'):
    value = getattr(guidance, name)
    _need(value >= 1, f'guidance.{name}', value, 'must be at least 1')
  _need(
    not (recipe.naive and progressive.clip_x_hat), 'progressive.clip_x_hat', progressive.clip_x_hat,
    'must be False in the naive baseline: guidance combines values of x_hat that are not clipped',
  )  # fmt: skip
  if {'guidance', 'progressive'} <= set(recipe.sections) and guidance.clip_x_hat:
    _need(
      progressive.clip_x_hat, 'progressive.clip_x_hat', progressive.clip_x_hat,
      'must be True with guidance.clip_x_hat=True: the student of stage one has learned nothing '
      'about x_hat beyond [-1, 1]',
    )  # fmt: skip
  _need(
    not recipe.encoder or recipe.model.predict != 'x', 'model.predict', recipe.model.predict,
    "must be 'v', 'eps' or 'flow' with encoder=True: encoding begins at t = 0, where an estimate "
    'of x says nothing about the noise',
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
    "must be 'phi' with noise.name='cosine', a schedule without timestep indices",
  )  # fmt: skip
  if recipe.noise.name != 'cosine':
    _need(
      start <= 512, 'progressive.start_steps', start,
      f'must be at most 512 with noise.name={recipe.noise.name!r}, a schedule without noise levels '
      'below t = 1/1000',
    )  # fmt: skip


def _check_mesh(mesh: recipes.Mesh) -> None:
  count = mesh.cpu_devices
  _need(1 <= count <= 64, 'mesh.cpu_devices', count, 'must be from 1 to 64')
  _need(mesh.slices >= 1, 'mesh.slices', mesh.slices, 'must be at least 1')
  for name in ('data', 'fsdp'):
    value = getattr(mesh, name)
    _need(
      value >= 1 or value == -1, f'mesh.{name}', value,
      'must be at least 1, or -1 to use all remaining devices',
    )  # fmt: skip
  _need(
    (mesh.data, mesh.fsdp) != (-1, -1), 'mesh.data', mesh.data,
    'and mesh.fsdp=-1 cannot both be -1; set mesh.data or mesh.fsdp to a number of devices',
  )  # fmt: skip


def _check_loop(train: recipes.Train) -> None:
  for name in ('checkpoint_every', 'max_to_keep', 'log_every', 'max_skipped_in_a_row'):
    _need(getattr(train, name) >= 1, f'train.{name}', getattr(train, name), 'must be at least 1')
  stall = train.stall_seconds
  _need(
    stall == 0 or stall >= 1, 'train.stall_seconds', stall,
    'must be at least 1, or 0 for no watchdog',
  )  # fmt: skip
  percent = train.max_skipped_percent
  _need(0 < percent <= 100, 'train.max_skipped_percent', percent, 'must be above 0 and at most 100')
  for name in ('checkpoint_every', 'log_every'):
    _need(
      getattr(train, name) % train.substeps == 0, f'train.{name}', getattr(train, name),
      f'must be a multiple of train.substeps={train.substeps}',
    )  # fmt: skip


def _check_evaluation(e: recipes.Evaluation, noise: recipes.Noise) -> None:
  for name in ('quick_images', 'full_images'):
    value = getattr(e, name)
    _need(
      4 <= value < 2**31, f'evaluation.{name}', value,
      f'must be from 4 to {2**31 - 1}: precision and recall use the 3 nearest neighbours',
    )  # fmt: skip
  _need(e.batch_size >= 1, 'evaluation.batch_size', e.batch_size, 'must be at least 1')
  for name, least in (('real_images', 4), ('keep_images', 0), ('bank', 0)):
    value = getattr(e, name)
    _need(
      least <= value < 2**31, f'evaluation.{name}', value, f'must be from {least} to {2**31 - 1}'
    )
  most, why = 100_000, ''
  if noise.name != 'cosine':
    most, why = 1000, f' with noise.name={noise.name!r}, a schedule of 1000 times'
  for name in ('quick_reference_steps', 'full_reference_steps'):
    value = getattr(e, name)
    _need(1 <= value <= most, f'evaluation.{name}', value, f'must be from 1 to {most}{why}')
  fits = bool(e.ws) and min(e.ws) >= 0 and max(e.ws) <= MOST_W
  _need(fits, 'evaluation.ws', e.ws, f'must list guidance strengths from 0 to {MOST_W:g}')
  fits = bool(e.num_steps) and min(e.num_steps) >= 1 and max(e.num_steps) <= most
  _need(fits, 'evaluation.num_steps', e.num_steps, f'must list numbers from 1 to {most}{why}')
