"""DiT and SiT."""

import pathlib
from typing import Any

from gdistill import errors
from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import dit
from gdistill.convert import folding
from gdistill.published import common
from gdistill.published import schedulers
from gdistill.recipe import settings as recipes


def read(path: pathlib.Path, kind: str, null: str, autoencoder: str, text: str) -> Any:
  """DiT or SiT of any size, whose shapes say which."""
  within = path / 'transformer'
  file = common.one_file(within if within.is_dir() else path)
  whole = file.parent.parent if file.parent.name == 'transformer' else file.parent
  state = common.read_state(file)
  with common.naming(path):
    params = dit.params_from(state)
  width = params['patch']['bias'].shape[0]
  patch, _, channels, _ = params['patch']['kernel'].shape
  out = params['final']['bias'].shape[0] // patch**2
  original, heads = dit.is_original(state), 16 if width == 1152 else width // 64
  # What lies beside a file with the authors' names need not be of it.
  beside = {p.name for p in whole.iterdir() if p.is_dir()} if path.is_dir() or not original else ()
  noise, predict = common.DDPM_NOISE, 'eps'
  if kind == 'sit':
    noise, predict = recipes.Noise('cosine'), 'flow'
  if 'pos_embed' in state:
    size = round(state['pos_embed'].shape[1] ** 0.5) * patch
  else:
    config = common.read_json(file.with_name('config.json'))
    with common.naming(file.with_name('config.json')):
      size = common.sample_size(config, 32)
      if size % patch:
        folding.refuse('sample_size', size, f'a multiple of patch_size={patch}')
      heads = heads if original else dit.heads_from(config, params)
  if 'scheduler' in beside:
    if kind == 'sit':
      raise errors.ConfigError(
        f'{whole}/scheduler is of a network that is shown an index, as SiT is not; say --kind=dit'
      )
    noise, predict = schedulers.read_noise(whole)
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
  with common.naming(path):
    common.check_network(settings, noise)
  where = autoencoder or (str(whole / 'vae') if 'vae' in beside else '')
  if not where:
    raise errors.ConfigError(
      f"--source={path} brings no autoencoder; name the folder of Stable Diffusion's "
      '(sd-vae-ft-ema) with --autoencoder'
    )
  about = {
    'digest': common.digest(state), 'null_rule': f'row {settings.num_classes} of the label table',
    'head_order': 'q, k, v in thirds', 'epsilon': 1e-6,
  }  # fmt: skip
  found = autoencoders.read(where)
  return common.Teacher(kind, settings, noise, params, 'trained', None, found, None, about)
