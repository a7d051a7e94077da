"""Measures pictures on disk: metrics of samples that any program made, and reference statistics."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from gdistill import errors
from gdistill.data import images as data
from gdistill.data import source
from gdistill.evaluation import presets
from gdistill.evaluation import protocol
from gdistill.evaluation import reference
from gdistill.evaluation.features import extractors
from gdistill.evaluation.figures import clip_score as clip_scores
from gdistill.evaluation.figures import measure
from gdistill.evaluation.figures import statistics
from gdistill.process import progress
from gdistill.workdir import storage

BANK = 10_000  # largest number of pictures whose features enter precision, recall and KID
Tick = Callable[[int], None]  # progress callback, called with the number of pictures measured


def evaluate(
  images: data.Images,
  against: str,
  extractor: extractors.Extractor,
  tick: Tick = lambda done: None,
  preset: presets.Preset | None = None,
  clip: str = '',
) -> dict[str, Any]:
  """Returns a row of metrics (FD, KID, ...) of `images`, with the protocol of the measurement.

  `against` is the path of a file of reference statistics, or of reference pictures to measure.
  `tick` is called with the number of pictures measured so far.
  If `preset`, the protocol of a published table, is given, the row lists each departure from it.
  With a preset, `images` must have been loaded at the preset's size; reference pictures are
  resized to that size.
  `clip` is the name of the CLIP network that scored the captions; the name is only compared with
  the preset's CLIP network.
  The row says None for 'rounding', 'labels' and 'clipping', because these three settings are
  unknown for pictures on disk.
  """
  if len(images) < 2:
    raise errors.ConfigError(
      f'--images={images.path} holds {len(images)} picture; a distance needs at least 2 pictures: '
      'give more pictures'
    )
  extractor.check(images.shape)
  target = _reference(against, extractor, images.shape, preset.size if preset else 0)
  if not target.upright:
    progress.say(
      f'--reference={against} was made by an earlier version of gdistill, which ignored EXIF '
      'orientation: if its pictures are photographs, make the file again with gdistill statistics'
    )
  found = _measured(images, extractor, tick)
  theirs, ours = target.measured.spatial, found.spatial
  if theirs is not None and ours is not None and theirs.mean.shape != ours.mean.shape:
    raise errors.ConfigError(
      f'--reference={against} has mu_s[{theirs.mean.size}], but spatial features of '
      f'{extractor.name} have {ours.mean.size} values: another network made the file; give '
      f'a file that was made with {extractor.name}'
    )
  row = {
    **target.protocol,
    'distance': extractor.distance,
    'rounding': None,
    'labels': None,
    'clipping': None,
    'images': len(images),
    'images_set': os.path.basename(os.path.normpath(images.path)),
    'pictures_resize': images.resized,
    'bank': BANK,
    **measure.figures(found, target.measured, target.support),
    'versions': protocol.versions_in_words(),
  }
  if preset:
    found = presets.departures(preset, row, images.brought, clip)
    row |= {'preset': preset.name, 'departures': '; '.join(found) or 'none'}
  return row


def captions(images: data.Images, folder: str) -> list[str]:
  """Returns the caption of each picture, read from the text files in `folder`.

  Prints how many captions have several lines. Raises DataError if the pictures come from an .npz
  file, because captions are found by file name.
  """
  if not images.names:
    raise errors.DataError(
      f'--images={images.path} must be a folder when captions are given, because a caption is '
      'found by the file name of the picture; give the folder of the pictures'
    )
  found, notes = data.captions(folder, images)
  for line in notes:
    progress.say(line)
  return found


def clip_score(
  images: data.Images, sentences: list[str], scorer: clip_scores.Scorer
) -> dict[str, Any]:
  """Returns {'clip_score', 'clip', 'clip_digest'} of pictures and their captions.

  `sentences` holds one caption for each picture. 'clip' is the name of the CLIP network, and
  'clip_digest' the hash of its weights.
  """
  text = scorer.texts(sentences)
  found = [
    extractors.extract(scorer.image, pixels)[scorer.image.features]
    for _, pixels in images.batches(extractors.BATCH)
  ]
  return {
    'clip_score': clip_scores.score(np.concatenate(found), text),
    'clip': scorer.image.name,
    'clip_digest': scorer.image.digest,
  }


def few(images: int, extractor: extractors.Extractor) -> str:
  """Returns a warning that the Fréchet distance is biased if `images`, the number of pictures, is
  below 2,048; otherwise returns ''.
  """
  if images >= 2_048:
    return ''
  singular = f'; the covariance of {extractor.size} features is singular for so few pictures'
  return (
    f'{extractor.distance} of {images:,} pictures is biased upwards: compare it only with other '
    f'sets of {images:,} pictures; published values use 50,000'
    f'{singular if images <= extractor.size else ""}'
  )


def statistics_of_images(
  images: data.Images, extractor: extractors.Extractor, tick: Tick = lambda done: None
) -> reference.Reference:
  """Returns reference statistics of pictures that were loaded from a folder or an .npz file."""
  extractor.check(images.shape)
  name, digest = os.path.basename(os.path.normpath(images.path)), images.digest()
  found = _measured(images, extractor, tick, digest.update)
  digest = digest.hexdigest()[:16]
  about = reference.describe(extractor, name, 'all', len(images), digest, BANK, images.shape)
  return reference.Reference(found, {**about, 'reference_resize': images.resized})


def statistics_of_source(
  images: source.Source,
  name: str,
  split: str,
  extractor: extractors.Extractor,
  tick: Tick = lambda done: None,
) -> reference.Reference:
  """Returns reference statistics of a data source: the split `split` of the data set `name`."""
  extractor.check(images.shape)
  running, done = measure.Running(extractor, len(images), BANK), 0
  for index, found in images.batches(extractors.BATCH):
    running.add(extractors.extract(extractor, found['pixels']), index)
    done += len(index)
    tick(done)
  if done < 2:
    raise errors.DataError(
      f'data.name={name}, {split!r}: {done} of {len(images):,} pictures can be measured, because '
      'the others are too small; statistics need at least 2: give larger pictures'
    )
  if done < len(images):
    progress.say(f'{len(images) - done:,} pictures are too small, and left out of the statistics')
  digest, shape = images.fingerprint, images.shape
  about = reference.describe(extractor, name, split, done, digest, BANK, shape)
  return reference.Reference(running.measured(), about)


def _measured(
  images: data.Images,
  extractor: extractors.Extractor,
  tick: Tick = lambda done: None,
  hashed: Callable[[bytes], None] = lambda pixels: None,
) -> measure.Measured:
  running, done = measure.Running(extractor, len(images), BANK), 0
  for index, pixels in images.batches(extractors.BATCH):
    running.add(extractors.extract(extractor, pixels), index)
    hashed(np.ascontiguousarray(pixels).tobytes())
    done += len(index)
    tick(done)
  return running.measured()


def _reference(
  against: str, extractor: extractors.Extractor, shape: tuple[int, int, int], size: int
) -> reference.Reference:
  if os.path.isfile(against) and against.endswith('.npz'):
    names = set(_arrays(against, ()))
    if 'protocol' in names:
      found = reference.read(against, extractor)
      if found.measured.features.count < 2:
        raise errors.DataError(
          f'--reference={against} was made from one picture; a distance needs at least 2: make '
          'the file again from more pictures'
        )
      size = found.protocol.get('reference_size')
      if size != f'{shape[0]} x {shape[1]}':
        raise errors.DataError(
          f'--reference={against} was made from pictures of {size} pixels (height x width), and '
          f'--images has pictures of {shape[0]} x {shape[1]}; resize the pictures of --images, or '
          'make the file again with gdistill statistics --size'
        )
      return found
    if {'mu', 'sigma'} <= names:
      return _of_mu_and_sigma(against, extractor)
  elif not os.path.isdir(against):
    raise errors.DataError(
      f'--reference={against} does not exist; make the file with gdistill statistics, or give '
      'a folder of pictures'
    )
  images = data.load(against, '--reference', size)
  for line in images.passed.notes(f'--reference={against}'):
    progress.say(line)
  if images.shape != shape:
    raise errors.DataError(
      f'--reference={against} has pictures of {images.shape[1]} x {images.shape[0]}, and the '
      f'pictures of --images are {shape[1]} x {shape[0]}; resize one set of pictures to the size '
      'of the other set'
    )
  if len(images) < 2:
    raise errors.DataError(
      f'--reference={against} holds one picture; a distance needs at least 2 pictures: give '
      'more pictures'
    )
  return statistics_of_images(images, extractor)


def _arrays(file: str, wanted: tuple[str, ...]) -> dict[str, np.ndarray | None]:
  """Returns {name: array} of an .npz file; arrays whose name is not in `wanted` are None, not read.

  Raises DataError if the .npz file is damaged.
  """
  try:
    with np.load(file, allow_pickle=False) as stored:
      return {name: stored[name] if name in wanted else None for name in stored.files}
  except Exception as e:  # all errors: a damaged file makes zipfile, zlib or numpy raise
    raise errors.DataError(
      f'--reference={file} is not readable as an .npz file ({errors.brief(e)}); copy or download '
      'the file again'
    ) from e


def _of_mu_and_sigma(file: str, extractor: extractors.Extractor) -> reference.Reference:
  """Returns the reference statistics in a published FID file: mean mu [d], covariance sigma [d, d].

  A published file for sFID also holds the mean mu_s and the covariance sigma_s of the spatial
  features. Published FID files give neither the number of pictures nor the protocol of the
  measurement. Because the number of pictures is unknown, `Moments.given` assumes d + 1 pictures,
  the smallest number for which a d x d covariance may have full rank.
  """
  arrays = _arrays(file, ('mu', 'sigma', 'mu_s', 'sigma_s'))
  size = extractor.size
  if arrays['mu'].shape != (size,) or arrays['sigma'].shape != (size, size):
    raise errors.ConfigError(
      f'--reference={file} has mu{list(arrays["mu"].shape)}, but features of {extractor.name} have '
      f'{size} values: another network made the file; give a file that was made with '
      f'{extractor.name}'
    )

  def moments(mu, sigma):
    values = [arrays.get(name) for name in (mu, sigma)]
    if any(v is None or v.dtype.kind != 'f' or not np.isfinite(v).all() for v in values):
      raise errors.DataError(
        f'--reference={file}: {mu} and {sigma} must be finite numbers; download the file again'
      )
    if values[1].shape != values[0].shape * 2:
      raise errors.DataError(
        f'--reference={file}: {mu}{list(values[0].shape)} and {sigma}{list(values[1].shape)} must '
        'be [d] and [d, d]; download the file again'
      )
    return statistics.Moments.given(*values)

  spatial = moments('mu_s', 'sigma_s') if 'mu_s' in arrays and extractor.spatial else None
  found = measure.Measured(
    moments('mu', 'sigma'), spatial, None, None, np.zeros((0, size), np.float32),
    np.zeros(0, np.int64),
  )  # fmt: skip
  about = reference.describe(
    extractor, os.path.basename(file), 'unknown', None, storage.digest(file)[:16], None, None
  )
  return reference.Reference(found, about)
