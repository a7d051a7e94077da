"""Published teachers imported as rounds, and the images that they must draw in one step."""

import jax
import numpy as np
import published
import safetensors.numpy

from gdistill.convert import autoencoder as autoencoders
from gdistill.drawing import sampling
from gdistill.published import adm
from gdistill.published import importing
from gdistill.recipe import settings as recipes
from gdistill.rounds import folder as folders
from gdistill.rounds import network as networks
from gdistill.samplers import noise as image_noise
from gdistill.workdir import storage

SEEDS, LABELS, W = np.array([3, 11]), np.array([4, 1]), 1.5
DDPM_BETAS = np.linspace(1e-4, 0.02, 1000)


def save(file, state, licence=''):
  file.parent.mkdir(parents=True, exist_ok=True)
  safetensors.numpy.save_file(state, file)
  if licence:
    (file.parent / 'README.md').write_text(f'---\nlanguage: en\nlicense: {licence}\n---\n')
  return str(file)


def as_round(source, tmp_path, **given):
  """Imports the source; returns the round's folder."""
  card = importing.run(str(source), storage.path(tmp_path / 'round'), **given)
  folder = folders.read_folder(tmp_path / 'round')
  assert folder.card == card
  return folder


def start(folder):
  return image_noise.start(image_noise.image_keys(SEEDS), networks.image_shape(folder.settings))


def outputs(folder, logsnr, scale=1.0):
  """The network's outputs for z_1 times `scale` at t = 1: with its labels, and without."""
  net, w = folder.net, np.zeros(2, np.float32)
  level = np.full(2, logsnr, np.float32)
  said = jax.jit(net.apply)
  null = folder.params if folder.null_params is None else folder.null_params
  return tuple(
    np.asarray(said({'params': params}, start(folder) * scale, level, {'label': label}, w))
    for params, label in ((folder.params, LABELS), (null, np.full(2, -1)))
  )


def drawn(folder, w=W, num_steps=1):
  """x of the images or latents that the round's sampler draws."""
  sampler = sampling.Sampler(folder, 'ddim', 2)
  pixels, x = sampler.draw_both(SEEDS, LABELS, np.full(2, w), num_steps)
  assert pixels.dtype == np.uint8 and np.asarray(pixels).std() > 1
  return np.asarray(x)


def one_step(folder, betas, w=W):
  """x_hat at t = 1 of eps_c + w (eps_c - eps_null), from the betas."""
  abar = np.prod(1.0 - betas)
  cond, null = outputs(folder, np.log(abar / (1.0 - abar)))
  assert np.linalg.norm(cond - null) > 0.05 * np.linalg.norm(cond)
  eps = (1.0 + w) * cond - w * null
  return (np.asarray(start(folder)) - np.sqrt(1.0 - abar) * eps) / np.sqrt(abar)


def assert_close(found, expected):
  assert np.linalg.norm(found - expected) <= 1e-3 * np.linalg.norm(expected)


def dit_params(learned_sigma=True):
  settings = recipes.Model(**{
    **published.LATENT, 'network': 'dit', 'channels': 64, 'multipliers': (1,), 'groups': 1,
    'attention_resolutions': (), 'emb_channels': 64, 'heads': 1, 'num_blocks': 2,
    'num_classes': 5, 'learned_sigma': learned_sigma,
  })  # fmt: skip
  return published.params_of(settings, published.SD_NOISE)


def with_autoencoder(tmp_path):
  autoencoders.write(tmp_path / 'vae', published.autoencoder())
  return {'autoencoder': str(tmp_path / 'vae')}


def small_adm(monkeypatch, kind='adm64'):
  """Makes files of published.adm_state be read as this kind."""
  small = adm.RELEASES[kind]._replace(fields=published.SMALL_ADM, image_size=8)
  monkeypatch.setitem(adm.RELEASES, kind, small)
