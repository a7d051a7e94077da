"""Encodes the pictures and captions of a run once, before training."""

import contextlib
import dataclasses
import os
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
from gdistill.data import records
from gdistill.data import source
from gdistill.devices import mesh as meshes
from gdistill.devices import processes
from gdistill.frozen import networks as frozen_networks
from gdistill.process import interrupt
from gdistill.process import progress
from gdistill.recipe import settings as recipes
from gdistill.workdir import ledger
from gdistill.workdir import storage


def cache_folder(settings: recipes.Latents, workdir: storage.epath.Path) -> str:
  """Returns the folder of a run's latents; raises ConfigError if `settings.cache` is empty and the
  workdir is not on a disk.
  """
  if not settings.cache and not storage.is_local(workdir):
    raise errors.ConfigError(
      f"latents.cache='' means --workdir={workdir}/latents, which is not on a disk; set "
      'latents.cache to a folder on a local disk, or on a network disk that all hosts share'
    )
  return settings.cache or os.fspath(workdir / 'latents')


@dataclasses.dataclass(frozen=True)
class Done:
  """The result of `run`: the content of the latents' index.json, and the numbers of shards and
  pictures that this process encoded. If shards had to be encoded or verified, `index` is {} in all
  processes except process 0.
  """

  index: dict[str, Any]
  shards: int = 0
  encoded: int = 0
  seconds: float = 0.0


def run(
  train: source.Source,
  frozen: frozen_networks.Frozen,
  settings: recipes.Latents,
  inpainting: bool,
  folder: str,
  stop: interrupt.Interrupt,
  verify: bool = False,
) -> Done:
  """Encodes the training pictures whose latents are missing in `folder`; each process encodes a
  share.

  Shards that exist are checked by file size, or with `verify` by checksum. With `inpainting`, each
  picture is also encoded under random masks. Raises DataError if the folder holds the latents of
  other networks or of other pictures.
  """
  counter = _Texts(frozen.text) if frozen.text else None
  sentences = captions.of_source(train, settings.template) if counter else ()
  # After `of_source`, because some readers count captions of several lines when they read them.
  for line in () if jax.process_index() else source.notes(train):
    progress.say(line)
  if train.sampled and not jax.process_index():
    progress.say(
      f'{folder} was begun by an earlier version of gdistill: its pictures are recognised by name '
      'and length alone, so that its latents stay valid'
    )
  job = latent_cache.Job(
    latent_cache.Settings(
      folder, settings.batch_size, settings.shard_size, settings.skip_corrupt,
      jax.process_index(), jax.process_count(),
    ),
    train,
    _encoder(frozen.autoencoder, train.shape, settings, inpainting),
    counter and counter.described,
    sentences,
  )  # fmt: skip
  job.check()
  if not verify and not processes.any_process(not job.finished):
    return Done(records.read_index(folder, latents.FORMAT, latents.COMMAND, 'latents.cache'))
  lock = contextlib.nullcontext()
  if not jax.process_index():
    lock = ledger.Lock(folder, name=f'latents.cache={folder}')
  with lock as lock:
    done = _work(job, lock, stop)
  if counter and counter.cut:
    progress.say(f'{counter.cut:,} captions were cut to the {counter.described.length} tokens '
                 'that the text encoder reads')  # fmt: skip
  return done


def _work(job: latent_cache.Job, lock: ledger.Lock | None, stop: interrupt.Interrupt) -> Done:
  """Encodes this process's shards; the process that holds `lock` also removes temporary files and
  writes index.json.

  Every process must call `_work`, because all processes wait for each other at the start and at the
  end.
  """
  if lock:
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
  index = job.finish() if lock else {}
  processes.barrier('the latents have their index', hours=48)
  return Done(index, shards, encoded, seconds)


def _all_or_none(failed: errors.GdistillError | None) -> None:
  """Waits until every process has encoded its share; if one process failed, all processes raise."""
  processes.barrier('every process has encoded its share, or stopped', hours=48)
  kinds = errors.DataError, errors.Preempted
  broken, stopped = (processes.any_process(isinstance(failed, kind)) for kind in kinds)
  if failed is not None:
    raise failed
  if broken:
    raise errors.PeerError(
      'another process could not encode its pictures: read the error line of that process, repair '
      'the data, and start all processes again'
    )
  if stopped:
    raise errors.Preempted(
      'a signal stopped another process of this run; repeat the command to resume'
    )


def _encoder(
  autoencoder: autoencoders.Autoencoder,
  shape: tuple[int, int, int],
  settings: recipes.Latents,
  inpainting: bool,
) -> latent_encoding.Encoder:
  """Returns an encoder for pictures of `shape`; the encoder runs on all devices of this process."""
  whole, rows = meshes.over_local_devices(settings.batch_size)
  params = jax.device_put(autoencoder.params, whole)

  def encode(params, batch):
    return autoencoder.encode(params, pixels.to_images(batch))

  def masked(params, batch, numbers):
    images = pixels.to_images(batch)
    keys = jax.vmap(lambda number: jax.random.fold_in(jax.random.key(0), number))(numbers)
    mask = masks.random(keys, *images.shape[1:3])
    left, _ = autoencoder.encode(params, images * (1.0 - mask))
    return masks.condition(masks.smaller(mask, autoencoder.factor), left)

  encode = jax.jit(meshes.by_rows(encode, rows.mesh, (False, True)), out_shardings=rows)
  masked = jax.jit(meshes.by_rows(masked, rows.mesh, (False, True, True)), out_shardings=rows)
  sides = (side // autoencoder.factor for side in shape[:2])
  return latent_encoding.Encoder(
    lambda batch: encode(params, jax.device_put(batch, rows)),
    (*sides, autoencoder.latent_channels),
    autoencoder.kind == 'kl',
    frozen_networks.encoder_digest(autoencoder),
    settings.masks if inpainting else 0,
    lambda *given: masked(params, *(jax.device_put(a, rows) for a in given)),
  )


class _Texts:
  """A text encoder; `described` is the form that latent_cache.Job takes, and `cut` counts the
  captions that were cut because they were longer than the text encoder reads.
  """

  def __init__(self, found: texts.TextEncoder):
    self.cut = 0
    hidden = jax.jit(found.encode)

    def encode(prompts):
      ids, mask, warnings = found.tokens(prompts)
      self.cut += len(warnings)
      return hidden(found.params, ids, mask), mask

    digest = f'{found.digest}-{found.length}'
    self.described = latent_encoding.Texts(encode, found.length, found.width, digest)


def autoencoded(
  autoencoder: autoencoders.Autoencoder, batch_size: int
) -> Callable[[np.ndarray], np.ndarray]:
  """Returns a function that encodes pictures [B, H, W, 3] uint8 as latents and decodes the latents
  to pictures of the same shape, for any B. The function raises NumericsError if a latent or a
  picture is not finite.
  """

  @jax.jit
  def back(params, batch):
    mean, _ = autoencoder.encode(params, pixels.to_images(batch))
    images = autoencoder.decode(params, mean)
    return pixels.from_images(images), pixels.finite(mean, images)

  def through(given):
    parts = (given[i : i + batch_size] for i in range(0, len(given), batch_size))
    full = (np.resize(p, (batch_size, *p.shape[1:])) for p in parts)
    found, finite = zip(*(back(autoencoder.params, p) for p in full), strict=True)
    if not all(np.asarray(f).all() for f in finite):
      raise errors.NumericsError(
        'pictures that were encoded and decoded are not finite: the weights that '
        'latents.autoencoder names are damaged; download the autoencoder again'
      )
    return np.concatenate([np.asarray(p) for p in found])[: len(given)]

  return through
