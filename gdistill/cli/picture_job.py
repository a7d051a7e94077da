"""Draws the pictures of sample, edit, inpaint and transfer; a stopped command can resume."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gdistill import errors
from gdistill.cli import out_folder
from gdistill.cli import picture_flags
from gdistill.cli import source_pictures

_MOST_ON_SHEET = 16  # largest number of source pictures on sheet.png
_FIGURES = 'figures.json'


@dataclasses.dataclass(frozen=True)
class Job:
  """The pictures to sample: one result for every source picture and every seed.

  `row` holds the inputs of the network that are the same for all results, as arrays of one row.
  `counts` is {'num_steps': number of sampling steps, ...}, with all numbers of steps that the
  Editor needs. `make(batch_size)` returns the drawing.editor.Editor that samples the results.
  `mask(i)` [H, W, 1] is 1 where source picture i is to be painted; `mask` is None for commands
  without masks. `words` is a line for the user, or '', that says which classes are drawn.
  """

  sources: source_pictures.Sources
  shape: tuple[int, int, int]  # (height, width, channels) of the network's pictures
  seeds: Sequence[int]
  row: Mapping[str, Any]
  counts: Mapping[str, int]
  make: Callable[[int], Any]
  mask: Callable[[int], Any] | None = None
  words: str = ''

  def source(self, i: int) -> Any:
    """Returns source picture i at the size that the network works at, uint8 [H, W, C]."""
    pixels = self.sources.read(i, self.shape[2])
    return source_pictures.fitted(self.sources, i, pixels, self.shape)

  def name(self, i: int, seed: int) -> str:
    """Returns the file name of the result for source picture i and a seed."""
    suffix = f'_seed{seed}' if len(self.seeds) > 1 else ''
    return f'{self.sources.names[i]}{suffix}.png'


def run(
  args,
  checked: picture_flags.Checked,
  make: Callable[..., Any],
  counts: dict[str, int],
  title: str,
  encoder: picture_flags.Encoder | None = None,
  masks: source_pictures.Sources | None = None,
  mask: Callable[..., Any] | None = None,
) -> int:
  """Reads the networks, samples all results into the folder --out and returns the exit code.

  `make(folder, frozen, encoder_folder, batch_size)` returns the drawing.editor.Editor that samples
  the results. `counts` is {'num_steps': number of sampling steps, ...}, an input of the Editor.
  `masks` holds the paths of the mask files, and `mask(i, shape, factor)` returns the mask of source
  picture i; both are None for commands without masks.
  """
  from gdistill.devices import mesh as meshes

  paths = [args.folder] + ([encoder.path] if encoder else [])
  wanted = request(args, title, paths)
  wanted['files'] = source_pictures.stamps(checked.sources, *([masks] if masks else []))
  with held(args.out, wanted) as stop:
    meshes.use_compile_cache()
    meshes.make_cpu_devices(checked.card['config']['mesh']['cpu_devices'])
    job = _job(args, checked, make, counts, encoder, mask)
    _draw(job, args.out, wanted, args.scale, stop)
  return 0


def _job(args, checked, make, counts, encoder, mask) -> Job:
  """Reads the networks, and returns the Job for the arguments of `run`."""
  import numpy as np

  from gdistill.frozen import networks as frozen_networks
  from gdistill.rounds import folder as folders

  folder = folders.read_folder(args.folder)
  frozen = frozen_networks.read_frozen(folder)
  size = picture_flags.working_size(args.size, checked.settings, frozen)
  row = {'w': np.array([checked.drawing.w], np.float32), **checked.condition.row(frozen)}
  encoder_folder = None
  if encoder is not None:
    row |= {'from_w': np.array([encoder.w], np.float32), **encoder.condition.row(frozen, 'from_')}
    counts = {**counts, 'encode_steps': encoder.num_steps}
    same = os.path.realpath(encoder.path) == os.path.realpath(args.folder)
    encoder_folder = folder if same else folders.read_folder(encoder.path)
  shape = (*size, 3 if frozen.autoencoder else checked.settings.image_channels)
  factor = frozen.autoencoder.factor if frozen.autoencoder else 1
  return Job(
    checked.sources, shape, checked.drawing.seeds, row, counts,
    lambda batch_size: make(folder, frozen, encoder_folder, batch_size),
    (lambda i: mask(i, shape, factor)) if mask else None,
    picture_flags.in_words(args, checked, encoder),
  )  # fmt: skip


def request(args, title: str, folders: Sequence[str]) -> dict[str, Any]:
  """Returns the flags that the results of a command depend on, for request.json.

  `title` names the command, and `folders` are the rounds that draw, which are listed as digests of
  their parameters.
  """
  from gdistill.workdir import finished as finished_rounds

  wanted = {k: v for k, v in vars(args).items() if k not in ('out', 'debug', 'scale')}
  wanted['drawn_by'] = title
  wanted['parameters'] = [finished_rounds.params_digest(path) for path in folders]
  return wanted


def held(out: str, wanted: Mapping[str, Any]) -> contextlib.AbstractContextManager[Any]:
  """Returns `out_folder.held` of --out, for a command whose request is `wanted`.

  The context raises ConfigError unless `out` is new, is empty or has results of the same request.
  """
  return out_folder.held(out, lambda: _check_out(out, wanted))


def _check_out(out: str, wanted: Mapping[str, Any]) -> None:
  """Raises ConfigError unless `out` is new, is empty or has results of the request `wanted`.

  The request.json that an earlier command wrote to `out` must have the same content as `wanted`.
  """
  from gdistill.data import sheet_marks
  from gdistill.workdir import storage

  file, wanted = storage.path(out) / sheet_marks.REQUEST, storage.jsonable(dict(wanted))
  if not storage.exists(file):
    out_folder.check_new(out, but_for_a_lock=True)
    return
  found = storage.read_json(file)
  found = found if isinstance(found, dict) else {}
  other = [k for k in {**wanted, **found} if found.get(k) != wanted.get(k)]
  if other:
    values = (f'{found.get(k)!r} -> {wanted.get(k)!r}' for k in other)
    # Earlier versions listed a file as [path, size, time], and read some files otherwise.
    before = any(len(one) == 3 for one in found.get('files') or [])
    pictures = 'pictures, listed by an earlier version of gdistill' if before else 'pictures'
    said = (pictures if k == 'files' else f'{k}: {v}' for k, v in zip(other, values, strict=True))
    raise errors.ConfigError(
      f'--out={out} holds results of another request ({"; ".join(said)}); name another '
      'folder as --out'
    )


def draw_missing(
  out: Any,
  wanted: Mapping[str, Any],
  names: Mapping[Any, str],
  batch_size: Callable[[int], int],
  make: Callable[[Sequence[Any], int], Callable[[Sequence[Any]], Any]],
  stop: Any,
) -> None:
  """Draws the pictures that the folder `out` lacks, in batches, and writes each as a PNG file.

  `wanted` is the request that `held` was given. `names` is {result: file name}, where a result is
  any key. `batch_size(n)` is the size of a batch if n pictures are missing. `make(todo, size)` is
  called only if results, `todo`, are missing, and returns a function from at most `size` results to
  their pixels, uint8 [n, H, W, C].
  """
  from gdistill.data import sheet_marks
  from gdistill.drawing import sheets
  from gdistill.process import progress
  from gdistill.workdir import storage

  out = storage.path(out)
  todo = [result for result, name in names.items() if not storage.exists(out / name)]
  done, draw = len(names) - len(todo), None
  if not todo:
    progress.say(f'nothing to do: all {len(names)} pictures are in {out} already')
  size = batch_size(len(todo))
  with progress.Progress(wanted['drawn_by'], len(names), done) as bar:
    for first in range(0, len(todo), size):
      batch = todo[first : first + size]
      draw = draw or make(todo, size)
      drawn = draw(batch)
      stop.watch()  # raises if another command has taken the lock of `out` over
      # request.json is written before the first result, so that a later command can tell whether
      # the results belong to the same request.
      storage.write_json(out / sheet_marks.REQUEST, wanted)
      for result, pixels in zip(batch, drawn, strict=True):
        storage.write_bytes(out / names[result], sheets.png(pixels))
      done += len(batch)
      bar.update(done)
      stop.check()


def _draw(job: Job, out: str, wanted: Mapping[str, Any], scale: int | None, stop: Any) -> None:
  """Draws the results that are not in `out` yet, then writes figures.json and sheet.png.

  If `scale` is None, the pictures on the sheet are enlarged to about 64 pixels a side.
  """
  from gdistill.process import progress
  from gdistill.workdir import storage

  results = [(i, seed) for i in range(len(job.sources)) for seed in job.seeds]
  names = {result: job.name(*result) for result in results}

  def make(todo, size):
    for i in dict.fromkeys(i for i, _ in todo):  # every picture is checked before one is drawn
      job.source(i)
      if job.mask:
        job.mask(i)
    if job.words:
      progress.say(job.words)
    edit = job.make(size)
    return lambda batch: edit(_rows(job, batch), job.counts)

  draw_missing(out, wanted, names, lambda most: _batch(job.shape, most), make, stop)
  _summarise(job, storage.path(out), scale or max(1, 64 // max(job.shape[:2])), stop)


def _rows(job: Job, batch: Sequence[tuple[int, int]]) -> dict[str, Any]:
  """Returns the inputs of drawing.editor for `batch`, pairs (index of the source picture, seed)."""
  import jax
  import numpy as np

  index = list(dict.fromkeys(i for i, _ in batch))  # a picture is read once for all seeds
  place = [index.index(i) for i, _ in batch]
  rows = jax.tree.map(lambda a: np.repeat(a, len(batch), axis=0), dict(job.row))
  rows['pixels'] = np.stack([job.source(i) for i in index])[place]
  rows['seeds'] = np.array([seed for _, seed in batch], np.uint32)
  if job.mask:
    rows['mask'] = np.stack([job.mask(i) for i in index])[place]
  return rows


def _summarise(job: Job, out: Any, scale: int, stop: Any) -> None:
  """Writes figures.json and sheet.png from the results in `out`, and prints a summary."""
  import numpy as np

  from gdistill.data import pictures
  from gdistill.data import sheet_marks
  from gdistill.drawing import sheets
  from gdistill.process import progress
  from gdistill.workdir import storage

  resized, figures, sheet = 0, [], []
  for i, file in enumerate(job.sources.files):
    stop.check()
    source = job.source(i)
    resized += job.sources.read(i, job.shape[2]).shape != source.shape
    tiles = [source]
    if job.mask:  # this tile shows the known part, with the part to paint in grey
      tiles.append(np.where(job.mask(i) > 0, np.uint8(128), source))
    for seed in job.seeds:
      name = job.name(i, seed)
      pixels = pictures.decode(storage.read_bytes(out / name), str(out / name), job.shape[2])
      rms = float(np.sqrt(np.mean(((pixels.astype(np.float64) - source) / 127.5) ** 2)))
      figures.append({'image': file, 'result': name, 'seed': seed, 'rms_to_source': round(rms, 6)})
      tiles.append(pixels)
    if i < _MOST_ON_SHEET:
      sheet.append(np.stack(tiles))
  storage.write_json(out / _FIGURES, figures)
  found = sheets.png(sheets.sheet(np.stack(sheet), scale))
  storage.write_bytes(out / sheet_marks.SHEET, sheet_marks.marked(found))
  height, width = job.shape[:2]
  if resized:
    progress.say(
      f'{resized} source picture{"s" if resized > 1 else ""} cropped in the centre and resized to '
      f'{width} x {height}'
    )
  which = f'the first {_MOST_ON_SHEET}' if len(job.sources) > _MOST_ON_SHEET else 'all'
  progress.say(
    f'{len(figures)} picture{"s" if len(figures) > 1 else ""} in {out}; {sheet_marks.SHEET} '
    f'shows {which} source pictures beside their results; {_FIGURES} has the RMS difference of '
    'each result from its source'
  )


def _batch(shape: Sequence[int], most: int) -> int:
  """Returns the batch size for `most` results: a power of two that fits the devices' memory.

  The batch size is `most` rounded up, but at most 64 pictures of 64 x 64 pixels for each device, or
  one picture of 512 x 512.
  """
  import jax

  each = max(1, min(64, 2**18 // (shape[0] * shape[1])))
  return min(1 << max(most - 1, 0).bit_length(), each * jax.local_device_count())
