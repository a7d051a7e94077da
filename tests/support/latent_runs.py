"""Runs in latent space small enough for tests: pictures, frozen networks and configs for them."""

import io
import pathlib
import tarfile

import jax
import micro
import numpy as np
import texts
from jax import numpy as jnp
from PIL import Image

from gdistill.cli import config_file
from gdistill.convert import autoencoder as autoencoders
from gdistill.models import vae
from gdistill.recipe import reading
from gdistill.recipe import settings as recipes
from gdistill.workdir import storage

SIZE, CLASSES = 16, ('big_cat', 'dog', 'eel, conger')
NETS = {  # each with the latent channels that its configs expect
  'tiny': vae.Tiny(32, width=8, blocks_down=(1, 1), blocks_up=(1, 1)),
  'vq': vae.VQ(latent_channels=3, widths=(8, 8), layers=1, groups=4, entries=20),
  'kl': vae.KL(latent_channels=4, widths=(8, 8), layers=1, groups=4),
}


def autoencoder(kind: str, seed: int = 0) -> autoencoders.Autoencoder:
  """Returns an autoencoder with random weights, which maps SIZE x SIZE pixels to 8 x 8 latents."""
  net, rng = NETS[kind], np.random.default_rng(seed)

  def drawn(path, shape):
    scale = 1.0 if path[-1].key == 'scale' else 0.0
    width = 1 / np.sqrt(np.prod(shape.shape[:-1])) if len(shape.shape) > 1 else 0.1
    return rng.normal(scale, width, shape.shape).astype(np.float32)

  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))['params']
  return autoencoders.Autoencoder(kind, net, jax.tree_util.tree_map_with_path(drawn, shapes), 2.0)


def png(*seed: int) -> bytes:
  """Returns the PNG file of a picture of four random blocks."""
  blocks = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
  out = io.BytesIO()
  Image.fromarray(np.kron(blocks, np.ones((SIZE // 2, SIZE // 2, 1), np.uint8))).save(out, 'PNG')
  return out.getvalue()


def folder(path: pathlib.Path, each: int = 4) -> pathlib.Path:
  """Writes <split>/<class>/<number>.png: for every class `each` training and two held-out ones."""
  for s, (split, count) in enumerate((('train', each), ('validation', 2))):
    for c, name in enumerate(CLASSES):
      (path / split / name).mkdir(parents=True)
      for i in range(count):
        (path / split / name / f'{i}.png').write_bytes(png(s, c, i))
  return path


def captioned(path: pathlib.Path, count: int = 40) -> pathlib.Path:
  """Writes a WebDataset of one shard with seven distinct captions; returns its path."""
  with tarfile.open(path, 'w') as t:
    for i in range(count):
      for name, data in (('png', png(i)), ('txt', f'the cat of {i % 7}'.encode())):
        info = tarfile.TarInfo(f'{i:04d}.{name}')
        info.size = len(data)
        t.addfile(info, io.BytesIO(data))
  return path


KINDS = {  # config -> (autoencoder, whether it reads text)
  'photos_latent.py:tiny': ('tiny', False),
  'photos_latent.py:text_tiny': ('tiny', True),
  'imagenet256_latent.py:tiny': ('vq', False),
  'stable_diffusion.py:tiny': ('kl', True),
}


def inputs(path: pathlib.Path) -> pathlib.Path:
  """Writes all inputs of the configs to a folder: pictures, captions and frozen networks."""
  folder(path / 'pictures')
  captioned(path / 'captioned.tar')
  texts.clip_folder(path / 'text')
  for kind in NETS:
    autoencoders.write(path / kind, autoencoder(kind))
  return path


def config(name: str, given: pathlib.Path, **sections) -> dict:
  """Returns one of the configs in KINDS, with the inputs in `given`, 8 x 8 latents, few updates."""
  c = config_file.load(f'configs/{name}', [])
  kind, text = KINDS[name]
  webdataset = c['data']['name'] == 'webdataset'
  c['data']['path'] = str(given / ('captioned.tar' if webdataset else 'pictures'))
  c['latents'].update(autoencoder=str(given / kind), batch_size=8, shard_size=8)
  if text:
    c['latents'].update(text=str(given / 'text'), text_length=9, template='the {}')
    c['model'].update(context_dim=texts.WIDTH, context_length=9)
  c['model'].update(
    channels=8, multipliers=(1,), attention_resolutions=(8,), emb_channels=8, groups=2, w_features=4
  )
  if c['model'].get('context') == 'class':
    c['model']['context_dim'] = 8
  if not webdataset:
    c['model']['num_classes'] = len(CLASSES)
  c['model'].update(heads=2, head_dim=None)
  for stage, steps in (('teacher', 5), ('guidance', 3), ('progressive', 3)):
    # A high learning rate and a fast EMA, so that a few updates change the parameters.
    ema = min(c[stage]['ema'], 0.5)
    c[stage].update(steps=steps, batch_size=4, lr=1e-2, ema=ema)
  c['progressive'].update(last_steps=3, last_lr=1e-2)
  c['mesh'].update(cpu_devices=1)
  c['evaluation'].update(
    batch_size=8, quick_images=8, quick_reference_steps=4, full_images=8, full_reference_steps=4,
    real_images=100,
  )  # fmt: skip
  for section, values in sections.items():
    if isinstance(values, dict):
      c.setdefault(section, {}).update(values)
    else:
      c[section] = values
  return c


def recipe(name: str, given: pathlib.Path, **sections) -> recipes.Recipe:
  return reading.from_config(config(name, given, **sections))


def trained(
  one: recipes.Recipe, workdir: pathlib.Path, stop=None, compiled: dict | None = None
) -> pathlib.Path:
  micro.train(one, workdir, stop, compiled)
  return workdir


def evaluated(workdir: pathlib.Path) -> list[dict]:
  return storage.jsonable(micro.evaluate(workdir))
