"""Encoding the pictures and captions of a run once, before its training."""

import contextlib
import dataclasses
import functools
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gdistill import errors
from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import text as texts
from gdistill.core import masks
from gdistill.core import pixels
from gdistill.data import captions
from gdistill.data import latent_cache
from gdistill.data import latent_encoding
from gdistill.data import latents
from gdistill.data import pipeline as data
from gdistill.data import records
from gdistill.data import source
from gdistill.devices import mesh as meshes
from gdistill.devices import processes
from gdistill.frozen import networks as frozen_networks
from gdistill.process import interrupt
from gdistill.process import progress
from gdistill.recipe import settings as recipes
from gdistill.rounds import folder as folders
from gdistill.workdir import ledger
from gdistill.workdir import storage

_PROMPTS = 200  # that a round's card keeps, to be measured with


def pixel_shape(recipe: recipes.Recipe) -> tuple[int, int, int]:
  """Of the pictures of a recipe, which in latent space are `factor` times as large as latents."""
  m = recipe.model
  if not recipe.latent:
    return (m.image_size, m.image_size, m.image_channels)
  size = m.image_size * frozen_networks.autoencoder(recipe.latents.autoencoder).factor
  return (size, size, 3)


def pictures(recipe: recipes.Recipe) -> tuple[source.Source, source.Source]:
  """(training, held out) pictures; DataError where they are none that can be encoded."""
  try:
    return data.load(recipe.data, pixel_shape(recipe))
  except errors.ShapeError as e:
    if not recipe.latent:
      raise
    height, _, channels = e.found
    factor = frozen_networks.autoencoder(recipe.latents.autoencoder).factor
    fits = channels == 3 and height % factor == 0
    raise errors.DataError(
      f'model.image_size={recipe.model.image_size}: {recipe.data.path} holds pictures of height, '
      f'width, channels {list(e.found)}, and the autoencoder makes one latent of {factor} x '
      f'{factor} x 3; '
      + (f'set model.image_size={height // factor}' if fits else 'prepare them anew')
    ) from e


def check(recipe: recipes.Recipe) -> None:
  """ConfigError where the network does not fit what the frozen networks make."""
  if not recipe.latent:
    return
  m, where = recipe.model, recipe.latents
  wanted = {'image_channels': frozen_networks.autoencoder(where.autoencoder).latent_channels}
  if where.text:
    found = frozen_networks.text_encoder(where.text, where.text_length)
    wanted |= {'context_dim': found.width, 'context_length': found.length}
  for name, size in wanted.items():
    if getattr(m, name) != size:
      of = where.autoencoder if name == 'image_channels' else where.text
      raise errors.ConfigError(
        f'model.{name}={getattr(m, name)} is not what {of} makes; set it to {size}'
      )


def cache(recipe: recipes.Recipe, workdir: Any) -> str:
  """The folder of the latents of a run."""
  if not recipe.latents.cache and not storage.is_local(workdir):
    raise errors.ConfigError(
      f"latents.cache='' is --workdir={workdir}/latents; name a folder on a disk of this machine, "
      'or on one that all hosts see'
    )
  return recipe.latents.cache or os.fspath(storage.path(workdir) / 'latents')


def examples(recipe: recipes.Recipe, workdir: Any) -> Any:
  """What training reads: pictures, or latents that are there already."""
  if not recipe.latent:
    return pictures(recipe)[0]
  m = recipe.model
  return latents.load(cache(recipe, workdir), (m.image_size, m.image_size, m.image_channels))


@dataclasses.dataclass(frozen=True)
class Done:
  """What the index says ({} but in process 0); shards, pictures and seconds of this process."""

  index: dict[str, Any]
  shards: int = 0
  encoded: int = 0
  seconds: float = 0.0


def run(
  recipe: recipes.Recipe, folder: str, stop: interrupt.Interrupt, verify: bool = False
) -> Done:
  """Encodes what is missing of a recipe's training pictures; every process its share.

  What is there is trusted by its size, or with `verify` by its checksums. DataError where the
  folder was encoded by other networks or from other pictures.
  """
  where, train = recipe.latents, pictures(recipe)[0]
  settings = latent_cache.Settings(
    folder, where.batch_size, where.shard_size, where.skip_corrupt,
    jax.process_index(), jax.process_count(),
  )  # fmt: skip
  counter = (
    _Texts(frozen_networks.text_encoder(where.text, where.text_length)) if where.text else None
  )
  words = captions.of_source(train, where.template) if where.text else ()
  for line in getattr(train.read, 'notes', ()):
    progress.say(line)
  job = latent_cache.Job(
    settings, train, _encoder(recipe, frozen_networks.autoencoder(where.autoencoder)),
    counter and counter.described, words,
  )  # fmt: skip
  job.check()
  if not verify and not processes.any_process(not job.finished):
    return Done(records.read_index(folder, latents.FORMAT, latents.COMMAND, 'latents.cache'))
  first = not jax.process_index()
  lock = ledger.Lock(folder) if first else None
  with lock or contextlib.nullcontext():
    if first:
      job.clean()
    processes.barrier('the folder of latents is clean', hours=48)
    began, shards, encoded, failed = time.monotonic(), 0, 0, None

    def look():
      stop.check()
      if lock:
        lock.check()

    with progress.Progress('encoding', job.total, job.done) as bar:
      try:
        with stop.patient():
          shards, encoded = job.work(look, bar.update)
      except (errors.Preempted, errors.DataError) as e:
        failed = e
    _all_or_none(failed)
    seconds = time.monotonic() - began
    if counter and counter.cut:
      progress.say(f'{counter.cut:,} captions were cut to the {counter.described.length} tokens '
                   'that the text encoder reads')  # fmt: skip
    index = job.finish() if first else {}
    processes.barrier('the latents have their index', hours=48)
  return Done(index, shards, encoded, seconds)


def _all_or_none(failed: errors.GdistillError | None) -> None:
  """Waits until every process has its share, and raises in all of them where one has not."""
  processes.barrier('everybody has encoded its share, or stopped', hours=48)
  kinds = errors.DataError, errors.Preempted
  broken, stopped = (processes.any_process(isinstance(failed, kind)) for kind in kinds)
  if failed is not None:
    raise failed
  if broken:
    raise errors.PeerError('another process cannot encode its share, and says why; mend that')
  if stopped:
    raise errors.Preempted('another process was stopped; repeat the command to go on')


def class_prompts(folder: folders.Folder) -> list[str]:
  """What a network is measured with: captions of its classes, or some that were held out."""
  about = folder.card.get('latents') or {}
  if about.get('prompts'):
    return list(about['prompts'])
  template = about.get('template', '')
  return captions.of_names(folder.card['class_names'], template) if template else []


def prompts(recipe: recipes.Recipe) -> list[str]:
  """What all networks of a run are measured with, an imported teacher too; [] without text."""
  if not recipe.latents.text:
    return []
  train, held = pictures(recipe)
  names = train.class_names
  return captions.held_out(held, _PROMPTS) or captions.of_names(names, recipe.latents.template)


def _encoder(recipe: recipes.Recipe, found: autoencoders.Autoencoder) -> latent_encoding.Encoder:
  """The autoencoder on all of this process's devices."""
  m = recipe.model
  whole, rows = meshes.over_local_devices(recipe.latents.batch_size)
  params = jax.device_put(found.params, whole)

  @functools.partial(jax.jit, out_shardings=rows)
  def encode(params, batch):
    return found.encode(params, pixels.to_images(batch))

  @functools.partial(jax.jit, out_shardings=rows)
  def masked(params, batch, numbers):
    images = pixels.to_images(batch)
    keys = jax.vmap(lambda number: jax.random.fold_in(jax.random.key(0), number))(numbers)
    mask = masks.random(keys, *images.shape[1:3])
    left, _ = found.encode(params, images * (1.0 - mask))
    return masks.condition(masks.smaller(mask, found.factor), left)

  return latent_encoding.Encoder(
    lambda batch: encode(params, jax.device_put(batch, rows)),
    (m.image_size, m.image_size, m.image_channels),
    found.kind == 'kl',
    frozen_networks.encoder_digest(found),
    recipe.latents.masks if m.extra_channels else 0,
    lambda *given: masked(params, *(jax.device_put(a, rows) for a in given)),
  )


class _Texts:
  """A text encoder as latent_cache.Job asks it, and how many captions it had to cut."""

  def __init__(self, found: texts.TextEncoder):
    self.cut = 0
    hidden = jax.jit(found.encode)

    def encode(prompts):
      ids, mask, warnings = found.tokens(prompts)
      self.cut += len(warnings)
      return hidden(found.params, ids, mask), mask

    digest = f'{found.digest}-{found.length}'
    self.described = latent_encoding.Texts(encode, found.length, found.width, digest)


def keep(recipe: recipes.Recipe, workdir: Any) -> None:
  """Copies the frozen networks into the run, which then needs nothing else to be sampled from."""
  where = recipe.latents
  with tempfile.TemporaryDirectory() as folder:
    if where.text:
      texts.write(folder, frozen_networks.text_encoder(where.text, where.text_length))
    autoencoders.write(
      os.path.join(folder, frozen_networks.AUTOENCODER),
      frozen_networks.autoencoder(where.autoencoder),
    )
    # That of the autoencoder says that all are there.
    last = f'{frozen_networks.AUTOENCODER}/config.json'
    for name in sorted(storage.files(folder), key=lambda name: name == last):
      data = storage.read_bytes(os.path.join(folder, name))
      storage.write_bytes(storage.path(workdir) / name, data)


def kept(workdir: Any) -> bool:
  """Whether the run has its copies."""
  return storage.exists(storage.path(workdir) / frozen_networks.AUTOENCODER / 'config.json')


def autoencoded(recipe: recipes.Recipe) -> Callable[[np.ndarray], np.ndarray]:
  """pixels -> pixels [B, H, W, 3] uint8, of any number of pictures: through latents and back."""
  found, size = frozen_networks.autoencoder(recipe.latents.autoencoder), recipe.latents.batch_size

  @jax.jit
  def back(params, batch):
    mean, _ = found.encode(params, pixels.to_images(batch))
    return pixels.from_images(found.decode(params, mean))

  def through(given):
    parts = (given[i : i + size] for i in range(0, len(given), size))
    full = (np.resize(p, (size, *p.shape[1:])) for p in parts)
    return np.concatenate([np.asarray(back(found.params, p)) for p in full])[: len(given)]

  return through


def from_workdir(recipe: recipes.Recipe, workdir: Any) -> recipes.Recipe:
  """The recipe with the run's own copies of the frozen networks, where it has them."""
  if not recipe.latent or not kept(workdir):
    return recipe
  workdir = storage.path(workdir)
  where = {'autoencoder': os.fspath(workdir / frozen_networks.AUTOENCODER)}
  if recipe.latents.text:
    where['text'] = os.fspath(workdir)
  return dataclasses.replace(recipe, latents=dataclasses.replace(recipe.latents, **where))


def about(recipe: recipes.Recipe) -> dict[str, Any] | None:
  """What a card says of them; None in pixel space."""
  if not recipe.latent:
    return None
  return {
    **frozen_networks.networks(recipe),
    'template': recipe.latents.template,
    'prompts': captions.held_out(pictures(recipe)[1], _PROMPTS) if recipe.latents.text else [],
  }
