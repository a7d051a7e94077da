"""Small networks with random weights, in the formats of their publishers and as finished rounds."""

import contextlib
import json

import jax
import numpy as np
import safetensors.numpy
import texts
from jax import numpy as jnp

from gdistill.convert import adm
from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import stable_diffusion_unet as unet2d
from gdistill.convert import text
from gdistill.frozen import networks as frozen_networks
from gdistill.models import unet
from gdistill.models import vae
from gdistill.recipe import reading
from gdistill.recipe import settings as recipes
from gdistill.rounds import network as networks
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import storage

WEIGHTS = 'diffusion_pytorch_model.safetensors'
SD_NOISE = recipes.Noise('scaled_linear')
LATENT = dict(
  image_size=8, image_channels=4, num_classes=1, channels=32, multipliers=(1, 2), num_blocks=1,
  attention_resolutions=(8,), emb_channels=128, heads=4, head_dim=None, groups=8, dropout=0.0,
  w_features=16, w_scale=1000.0, dtype='float32', predict='eps', network='latent_unet',
  time='index', epsilon=1e-5, freq_shift=0.0, cos_first=True,
)  # fmt: skip
TEXT = dict(LATENT, context='text', context_dim=texts.WIDTH, context_length=77)
CLASS = dict(LATENT, context='class', context_dim=24, num_classes=3, image_channels=3, heads=1)
PIXEL = dict(
  image_size=8, image_channels=3, num_classes=3, channels=32, multipliers=(1, 2), num_blocks=1,
  attention_resolutions=(4,), emb_channels=48, heads=2, head_dim=None, groups=8, dropout=0.0,
  w_features=16, w_scale=1000.0, dtype='float32', predict='v',
)  # fmt: skip


@contextlib.contextmanager
def exact():
  """Computes in full float32, and compiles without optimisation, because programs run only once."""
  before = jax.config.read('jax_disable_most_optimizations')
  jax.config.update('jax_disable_most_optimizations', True)
  try:
    with jax.default_matmul_precision('highest'):
      yield
  finally:
    jax.config.update('jax_disable_most_optimizations', before)


def filled(shapes, seed=0):
  """Returns random parameters, none of them zero, with which layers keep the size of signals."""
  rng = np.random.default_rng(seed)

  def drawn(path, leaf):
    name = path[-1].key
    spread = 0.2
    if name in ('kernel', 'embedding'):
      spread = (leaf.size / leaf.shape[-1]) ** -0.5 if name == 'kernel' else 1.0
    elif name in ('class_table', 'null_text'):
      spread = 1.0
    return (rng.normal(size=leaf.shape) * spread + (name == 'scale')).astype(np.float32)

  return jax.tree_util.tree_map_with_path(drawn, shapes)


def params_of(settings, noise, takes_w=False, seed=0):
  net = networks.build(settings, takes_w, noise_settings=noise)
  return filled(networks.initial_shapes(net, settings), seed)


def autoencoder(kind='kl', channels=4, width=8, groups=4):
  """Returns an autoencoder with random weights, with 4 x 4 pixels for each latent."""
  sizes = dict(latent_channels=channels, widths=(width,) * 3, layers=1, groups=groups)
  net = vae.KL(**sizes) if kind == 'kl' else vae.VQ(**sizes, entries=20)
  shapes = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 16, 16, 3), float))
  return autoencoders.Autoencoder(kind, net, filled(shapes['params']), {'kl': 0.2, 'vq': 1.0}[kind])


def finished(path, settings, noise, kind='', template='', takes_w=True, **card):
  """Writes a finished round with its frozen networks in its folder; returns its parameters."""
  about = None
  if kind:
    found, encoder = autoencoder(kind, settings.image_channels), None
    autoencoders.write(path / frozen_networks.AUTOENCODER, found)
    if settings.context == 'text':
      texts.clip_folder(path)
      encoder = text.read(str(path))
    about = {
      'autoencoder': frozen_networks.encoder_digest(found),
      'text': encoder.digest if encoder else '',
      'text_length': encoder.length if encoder else 0,
      'template': template,
    }
  params = params_of(settings, noise, takes_w)
  plain = reading.to_dict(settings), reading.to_dict(noise)
  card = {
    'stage': 'progressive', 'num_steps': 4, 'sampler': 'deterministic', 'takes_w': takes_w,
    'guided': False, 'p_uncond': 0.0, 'null_label': -1, 'w_min': 0.0, 'w_max': 14.0,
    'clip_x_hat': False, 'predict': settings.predict, 'model': plain[0], 'noise': plain[1],
    'class_names': [str(i) for i in range(settings.num_classes)], 'latents': about,
    'licence': 'openrail', 'config': {'mesh': {'cpu_devices': 1}}, **card,
  }  # fmt: skip
  finished_rounds.finish(storage.path(path), params, card)
  return params


def stable_diffusion(path, **scheduler):
  """Writes a folder in the format of diffusers, without using diffusers; returns `path`."""
  settings = recipes.Model(**TEXT)
  net = networks.build(settings, False, noise_settings=SD_NOISE)
  put(path / 'unet', unet2d.config_from(net, 8), random_state(unet2d.state_shapes(net)))
  autoencoders.write(path / 'vae', autoencoder())
  texts.clip_folder(path)
  scheduler = dict(
    _class_name='PNDMScheduler', beta_start=0.00085, beta_end=0.012, steps_offset=1,
    beta_schedule='scaled_linear', num_train_timesteps=1000, set_alpha_to_one=False,
    skip_prk_steps=True, trained_betas=None, clip_sample=False, **scheduler,
  )  # fmt: skip
  texts.put(path / 'scheduler' / 'scheduler_config.json', json.dumps(scheduler))
  texts.put(path / 'README.md', '---\nlicense: creativeml-openrail-m\ntags:\n- x\n---\n# A card\n')
  return path


def random_state(shapes, seed=0):
  """Returns {name in torch: random array}, with which layers keep the size of signals."""
  rng = np.random.default_rng(seed)

  def drawn(name, shape):
    spread = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.2
    scale = len(shape) == 1 and name.endswith('weight')
    return (rng.normal(size=shape) * spread + scale).astype(np.float32)

  return {name: drawn(name, shape) for name, shape in shapes.items()}


def put(folder, config, state):
  texts.put(folder / 'config.json', json.dumps(config))
  safetensors.numpy.save_file(state, folder / WEIGHTS)


SMALL_ADM = dict(
  channels=32, multipliers=(1, 2), num_blocks=1, attention_resolutions=(4,), num_classes=5,
  emb_channels=64, heads=None, head_dim=16, dropout=0.1, **adm.CONVENTIONS,
)  # fmt: skip


def adm_state(size, order, seed=0):
  """Returns the weights of SMALL_ADM twice: as {name in ADM: array}, and as Flax parameters."""
  net = unet.UNet(**SMALL_ADM)
  one, cond = jnp.ones(1), {'label': jnp.zeros(1, int)}
  z = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
  shapes = jax.eval_shape(lambda z: net.init(jax.random.key(0), z, one, cond, one), z)['params']
  params = filled(shapes, seed)
  parts = {
    'time_embed.0': params['time0'], 'time_embed.2': params['time1'], 'out.0': params['norm_out'],
    'out.2': params['conv_out'], 'input_blocks.0.0': params['conv_in'],
  }  # fmt: skip
  for ours, theirs, channels in adm.blocks(net, size):
    block = params[ours]
    if 'attn' in ours:
      parts |= {f'{theirs}.norm': block['norm'], f'{theirs}.proj_out': block['out']}
      parts[f'{theirs}.qkv'] = _joint(block, channels // net.head_dim, order)
      continue
    layers = {'in_layers.0': 'norm1', 'in_layers.2': 'conv1', 'out_layers.0': 'norm2'}
    layers |= {'out_layers.3': 'conv2', 'skip_connection': 'shortcut'}
    parts |= {f'{theirs}.{name}': block[o] for name, o in layers.items() if o in block}
    halves = block['emb_scale'], block['emb_shift']
    parts[f'{theirs}.emb_layers.1'] = {
      k: np.concatenate([half[k] for half in halves], -1) for k in ('kernel', 'bias')
    }
  state = {'label_emb.weight': params['label']['kernel']}
  for name, layer in parts.items():
    for kind, a in layer.items():
      if kind == 'kernel':
        a = a.transpose(3, 2, 0, 1) if a.ndim == 4 else a.T
      state[f'{name}.{"bias" if kind == "bias" else "weight"}'] = np.ascontiguousarray(a)
  return state, params


def _joint(block, heads, order):
  """Returns q, k and v as one layer: all of q, then k, then v ('new'), or q, k, v of each head."""
  layers = [{'bias': np.zeros_like(block['q']['bias']), **block[name]} for name in 'qkv']
  found = {}
  for kind in ('kernel', 'bias'):
    each = [a[kind].reshape(*a[kind].shape[:-1], heads, -1) for a in layers]
    joint = np.stack(each, axis=-3 if order == 'new' else -2)
    found[kind] = joint.reshape(*joint.shape[:-3], -1)
  return found
