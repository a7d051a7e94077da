"""What edit, inpaint and transfer share: a network, what it is asked for, pictures in and out."""

import collections
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gdistill import errors
from gdistill.cli import edge
from gdistill.cli import sample

_MOST_ON_SHEET = 16  # pictures: a sheet is to be looked at
_REQUEST, _SHEET = 'request.json', 'sheet.png'
_MOST_ENLARGED = 4  # times: of fewer pixels a picture says too little
NONE = 'none'  # as a label: no condition


def parser(name: str, description: str) -> edge.Parser:
  """With the flags that all three have."""
  p = edge.Parser(prog=f'gdistill {name}', description=description)
  p.add_argument('--folder', required=True, help='a finished round: WORKDIR/<round>')
  p.add_argument('--image', required=True, help='a JPEG, PNG or WebP, or a folder of them')
  p.add_argument('--label', help='what to draw: a class, by its number or its name')
  p.add_argument('--prompt', help='what to draw, for a text network')
  p.add_argument('--w', type=float, help='guidance strength, 0 = none (default 1)')
  p.add_argument('--guidance_scale', type=float, help='1 + w, as others write it')
  p.add_argument('--num_steps', type=int, help="default: the student's own; 64 for a teacher")
  p.add_argument('--seeds', default='0', help='3, or 0..3, or 1,5: a result each (default 0)')
  p.add_argument(
    '--size',
    help="HEIGHTxWIDTH to work at (default: the network's own); pictures of another size are "
    'cropped to this shape, in the centre, and resized by area',
  )
  p.add_argument('--scale', type=int, default=1, help='enlargement of the sheet (default 1)')
  p.add_argument('--out', required=True, help='a folder that is empty or does not exist')
  return p


def add_source(p: edge.Parser, needed: str) -> None:
  """The flags of what a picture shows before it is changed."""
  p.add_argument('--source_label', help=f'the class it shows, or {NONE}{needed}')
  p.add_argument('--source_prompt', help='what it shows, for a text network')
  p.add_argument('--source_w', type=float, help="w of encoding (default: the encoder's smallest)")
  p.add_argument('--encoder', default='', help='a round distilled to encode, or an undistilled one')
  p.add_argument('--encode_steps', type=int, help="default: the encoder's own; 64 undistilled")


@dataclasses.dataclass(frozen=True)
class Opened:
  """A network and what the flags ask of it, checked."""

  folder: Any
  frozen: Any
  num_steps: int
  w: float
  condition: 'Condition'
  seeds: list[int]
  size: tuple[int, int]  # of pictures
  request: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Condition:
  """A class, or a prompt of a text network; label -1 is none."""

  label: int
  tokens: tuple[Any, Any] | None = None  # of the prompt: (ids [1, length], mask)

  def rows(self, count: int, whose: str = '') -> dict[str, Any]:
    """The same for `count` rows, as gdistill.editing reads them."""
    import numpy as np

    rows = {f'{whose}labels': np.full(count, self.label, np.int32)}
    if self.tokens is not None:
      rows[f'{whose}prompts'] = tuple(np.repeat(a, count, axis=0) for a in self.tokens)
    return rows


def opened(args) -> Opened:
  """Reads the round of --folder; ConfigError where a flag does not fit it."""
  from gdistill import checkpoints
  from gdistill import encode
  from gdistill import model
  from gdistill import parallel
  from gdistill import sampling

  card = checkpoints.read_card(args.folder)
  inside = os.path.abspath(args.out).startswith(os.path.join(os.path.abspath(args.image), ''))
  if inside and os.path.isdir(args.image):
    raise errors.ConfigError(
      f'--out={args.out} lies in --image={args.image}, whose pictures results would be taken for; '
      'name a folder outside'
    )
  w, seeds = sample.strength(args), sample.numbers('seeds', args.seeds, 2**32)
  num_steps = args.num_steps if args.num_steps is not None else card['num_steps'] or 64
  sampling.check_steps(card, num_steps, sampling.own_sampler(card))
  sample.check_strength(args.folder, card, '--w', w)
  if not 1 <= args.scale <= 64:
    raise errors.ConfigError(f'--scale={args.scale} must be from 1 to 64')
  request = _request(args)
  if not _begun(args.out, request):
    edge.check_new(args.out)
  parallel.use_compile_cache()
  parallel.make_cpu_devices(card['config']['mesh']['cpu_devices'])
  folder = model.read_folder(args.folder)
  frozen = encode.read_frozen(folder)
  size = _size(args.size, folder, frozen)
  wanted = condition(folder, frozen, args.label, args.prompt)
  return Opened(folder, frozen, num_steps, w, wanted, seeds, size, request)


def _request(args) -> dict[str, Any]:
  """What names the results of a command: its flags, and the parameters it draws with."""
  from gdistill import checkpoints

  given = {k: v for k, v in vars(args).items() if k not in ('out', 'debug', 'scale')}
  folders = [args.folder, getattr(args, 'encoder', '') or args.folder]
  given['parameters'] = [
    checkpoints.params_digest(f) for f in folders if checkpoints.is_finished(f)
  ]
  paths = [p for p in (args.image, getattr(args, 'mask', '')) if os.path.exists(p)]
  stats = [(file, os.stat(file)) for path in paths for file in _files(path)]
  return given | {'files': [(file, s.st_size, s.st_mtime_ns) for file, s in stats]}


def _files(path: str) -> list[str]:
  """The pictures of a folder, at any depth and in order, or a picture."""
  from gdistill.data import pictures

  if not os.path.isdir(path):
    return [path]
  return [
    os.path.join(folder, name)
    for folder, _, names in sorted(os.walk(path))
    for name in sorted(names)
    if name.lower().endswith(pictures.SUFFIXES) and not name.startswith('.')
  ]


def _begun(out: str, request: dict[str, Any]) -> bool:
  """Whether a command that was stopped has left the first of the very same results there."""
  from gdistill import storage

  file = storage.path(out) / _REQUEST
  return storage.exists(file) and storage.read_json(file) == storage.jsonable(request)


def condition(
  folder: Any, frozen: Any, label: str | None, prompt: str | None, flag: str = ''
) -> Condition:
  """What --label or --prompt stand for; `flag` is what their names begin with."""
  import difflib

  if frozen.text is not None:
    if label is not None:
      raise errors.ConfigError(
        f'--{flag}label={label}: {folder.path} reads text; say it as --{flag}prompt'
      )
    if prompt is None:
      raise errors.ConfigError(f'--{flag}prompt is missing: {folder.path} reads text')
    return Condition(0, frozen.tokens([prompt]))
  if prompt is not None:
    raise errors.ConfigError(
      f'--{flag}prompt={prompt!r}: {folder.path} is not conditioned on text; give --{flag}label'
    )
  names, classes = [str(n) for n in folder.card['class_names']], folder.settings.num_classes
  if label is None:
    raise errors.ConfigError(f'--{flag}label is missing: give one of {_listed(names, classes)}')
  if label == NONE and NONE not in names:
    null = folder.card.get('null') or ('trained' if folder.card['p_uncond'] else 'none')
    if folder.guided and null not in ('none', 'network'):
      return Condition(-1)
    raise errors.ConfigError(
      f'--{flag}label={NONE}: {folder.path} has learned no picture without a class; give one'
    )
  if label in names:
    return Condition(names.index(label))
  if label.isascii() and label.isdigit() and int(label) < classes:
    return Condition(int(label))
  near = difflib.get_close_matches(label, names, 1)
  raise errors.ConfigError(
    f'--{flag}label={label} is no class of {folder.path}; '
    + (f'did you mean {near[0]}?' if near else f'give one of {_listed(names, classes)}')
  )


def encoder(args, asked: Opened) -> tuple[Any, int, float]:
  """(round, steps, w) of what encodes; ConfigError where there is none."""
  from gdistill import checkpoints
  from gdistill import editing
  from gdistill import model

  where = args.encoder or args.folder
  card = checkpoints.read_card(where)
  if asked.folder.card.get('sampler') == 'stochastic':
    raise errors.ConfigError(
      f'--folder={args.folder} was distilled for the stochastic sampler, which adds noise of its '
      'own; decode with a round of the deterministic one'
    )
  if card['predict'] == 'x':
    raise errors.ConfigError(
      f'--encoder={where} predicts x, which says nothing about the noise at t = 0; name a network '
      'that predicts v or eps'
    )
  if card['stage'] != 'encoder' and card['num_steps']:
    raise errors.ConfigError(
      (
        f'--encoder={where} draws in {card["num_steps"]} steps and encodes nothing'
        if args.encoder
        else f'--encoder is missing: {where} draws in {card["num_steps"]} steps and encodes nothing'
      )
      + '; name a round of an encoder ladder (--config.encoder=True), or one that is not distilled '
      'to few steps: the teacher, stage one'
    )
  steps = args.encode_steps if args.encode_steps is not None else card['num_steps'] or 64
  if card['num_steps'] and steps != card['num_steps']:
    raise errors.ConfigError(
      f'--encode_steps={steps} is not what {where} was distilled for: give {card["num_steps"]}'
    )
  if not 1 <= steps <= 100_000:
    raise errors.ConfigError(f'--encode_steps={steps} must be from 1 to 100000')
  smallest = 0.0 if card['guided'] else card['w_min']
  w = smallest if args.source_w is None else args.source_w
  if not 0 <= w < float('inf'):
    raise errors.ConfigError(f'--source_w={w} must be a number of at least 0')
  sample.check_strength(where, card, '--source_w', w)
  same = not args.encoder or os.path.realpath(where) == os.path.realpath(args.folder)
  if same:
    return asked.folder, steps, w
  found = model.read_folder(where)
  editing.check_pair(asked.folder, found)
  return found, steps, w


@dataclasses.dataclass(frozen=True)
class Picture:
  """`name` is its file's within the folder, without suffix; `pixels` [H, W, C] at working size."""

  name: str
  file: str
  original: tuple[int, ...]  # the shape before
  pixels: Any


class Sources:
  """The pictures of --image, read one after the other and brought to the size of the network."""

  def __init__(self, path: str, asked: Opened, flag: str = '--image'):
    from gdistill.data import pictures

    self._asked, self._flag = asked, flag
    if os.path.isdir(path):
      found = _files(path)
      if not found:
        raise errors.DataError(f'{flag}={path} holds no picture ({", ".join(pictures.SUFFIXES)})')
      self._files, top = found, path
    elif os.path.isfile(path):
      self._files, top = [path], os.path.dirname(path) or '.'
    else:
      raise errors.DataError(f'{flag}={path} does not exist; name a picture or a folder of them')
    names = [os.path.relpath(f, top) for f in self._files]
    stems = [os.path.splitext(n)[0] for n in names]
    taken = collections.Counter([*stems, os.path.splitext(_SHEET)[0]])
    self._names = [s if taken[s] == 1 else n for s, n in zip(stems, names, strict=True)]
    self.changed = 0

  def __len__(self) -> int:
    return len(self._files)

  def __iter__(self) -> Iterator[Picture]:
    for name, file in self.named():
      pixels = self.read(file)
      yield Picture(name, file, pixels.shape, self.fitted(pixels))

  def named(self) -> Iterator[tuple[str, str]]:
    """(name, file) of each."""
    return zip(self._names, self._files, strict=True)

  def read(self, file: str, channels: int = 0) -> Any:
    """[H, W, C] uint8, upright, as it is in the file."""
    from gdistill.data import pictures

    try:
      with open(file, 'rb') as f:
        data = f.read()
    except OSError as e:
      raise errors.DataError(f'{self._flag}={file} cannot be read: {e.strerror}; mend that') from e
    of = self._asked
    wanted = channels or (3 if of.frozen.autoencoder else of.folder.settings.image_channels)
    found = pictures.decode(data, file, wanted, upright=True)
    height, width = of.size
    if found.shape[0] * _MOST_ENLARGED < height or found.shape[1] * _MOST_ENLARGED < width:
      raise errors.DataError(
        f'{self._flag}={file} is {found.shape[1]} x {found.shape[0]} pixels, too few for the '
        f'{width} x {height} of the network; give a larger one'
      )
    return found

  def fitted(self, pixels: Any) -> Any:
    """At working size."""
    from gdistill.data import pictures

    self.changed += pixels.shape[:2] != self._asked.size
    return pictures.fitted(pixels, *self._asked.size)


def run(
  args,
  asked: Opened,
  sources: Sources,
  make: Callable[[int], Any],
  rows_of: Callable[[list[Picture]], dict[str, Any]],
  counts: dict[str, int],
  title: str,
  shown: Callable[[dict[str, Any]], list[Any]] = lambda rows: [],
) -> int:
  """Draws every picture with every seed, batch by batch; writes results, figures and a sheet.

  `make(batch_size)` is the editor, `rows_of(pictures)` what it reads beside pixels, seeds and the
  condition, one row a picture; `shown(rows)` what the sheet has between source and results.
  """
  import numpy as np

  from gdistill import interrupt
  from gdistill import progress
  from gdistill import show
  from gdistill import storage

  out, seeds, total = storage.path(args.out), asked.seeds, len(sources) * len(asked.seeds)
  size = min(1 << (total - 1).bit_length(), _batch(asked.size))
  each = max(1, size // len(seeds))  # pictures at a time
  figures, sheet, done, draw = [], [], 0, None
  with interrupt.Interrupt() as stop, progress.Progress(title, total) as bar:
    for some in _chunks(sources, each):
      rows = {'pixels': np.stack([p.pixels for p in some]), **rows_of(some)}
      middle = shown(rows)
      names = [_results(picture, seeds) for picture in some]
      results = _drawn_before(out, names)
      if results is None:
        rows = {k: _repeated(v, len(seeds)) for k, v in rows.items()}
        count = len(rows['pixels'])
        rows |= {
          'seeds': np.tile(np.array(seeds, np.uint32), len(some)),
          'w': np.full(count, asked.w, np.float32),
          **asked.condition.rows(count),
        }
        draw = draw or make(size)
        drawn = draw(rows, counts, stop, lambda n, before=done: bar.update(before + n))
        results = drawn.reshape(len(some), len(seeds), *drawn.shape[1:])
        storage.write_json(out / _REQUEST, asked.request)  # before the first result
        for i, of_picture in enumerate(names):
          for name, pixels in zip(of_picture, results[i], strict=True):
            storage.write_bytes(out / name, sample.png(pixels))
      else:
        bar.update(done + len(some) * len(seeds))
        stop.check()
      done += len(some) * len(seeds)
      for i, picture in enumerate(some):
        for seed, name, pixels in zip(seeds, names[i], results[i], strict=True):
          difference = (pixels.astype(np.float64) - picture.pixels) / 127.5
          figures.append({
            'image': picture.file, 'result': name, 'seed': seed,
            'rms_to_source': round(float(np.sqrt(np.mean(difference**2))), 6),
          })  # fmt: skip
        if len(sheet) < _MOST_ON_SHEET:
          sheet.append(np.stack([picture.pixels, *(a[i] for a in middle), *results[i]]))
  storage.write_json(out / 'figures.json', figures)
  storage.write_bytes(out / _SHEET, sample.png(show.sheet(np.stack(sheet), args.scale)))
  if sources.changed:
    height, width = asked.size
    progress.say(f'{sources.changed} brought to {width} x {height}: centre crop, then by area')
  more = f', of the first {_MOST_ON_SHEET}' if len(sources) > _MOST_ON_SHEET else ''
  print(
    f'{total} picture{"s" if total > 1 else ""} in {out}; {_SHEET} has sources and results '
    f'beside each other{more}; figures.json how far they are apart',
    file=sys.stderr,
  )
  return 0


def _results(picture: Picture, seeds: Sequence[int]) -> list[str]:
  if len(seeds) == 1:
    return [f'{picture.name}.png']
  return [f'{picture.name}_seed{seed}.png' for seed in seeds]


def _drawn_before(out: Any, names: list[list[str]]) -> Any:
  """[pictures, seeds, H, W, C] of files that are all there, or None."""
  import numpy as np

  from gdistill import storage
  from gdistill.data import pictures

  if not all(storage.exists(out / name) for of_picture in names for name in of_picture):
    return None
  found = [[storage.read_bytes(out / name) for name in of_picture] for of_picture in names]
  grey = found[0][0][25:26] == b'\0'  # of a PNG's header: its kind of colours
  return np.stack([
    np.stack([pictures.decode(data, str(out), 1 if grey else 3) for data in of_picture])
    for of_picture in found
  ])  # fmt: skip


def _repeated(a: Any, times: int) -> Any:
  import numpy as np

  if isinstance(a, tuple):
    return tuple(_repeated(b, times) for b in a)
  return np.repeat(a, times, axis=0)


def _chunks(sources: Sources, size: int) -> Iterator[list[Picture]]:
  some: list[Picture] = []
  for picture in sources:
    some.append(picture)
    if len(some) == size:
      yield some
      some = []
  if some:
    yield some


def _batch(size: tuple[int, int]) -> int:
  """Pictures of this size at a time, of each device: 64 of 64 x 64, one of 512 x 512."""
  import jax

  return max(1, min(64, 2**18 // (size[0] * size[1]))) * jax.local_device_count()


def _listed(names: Sequence[str], classes: int) -> str:
  if names and len(names) <= 30:
    return ', '.join(names)
  return f'0 to {classes - 1}' + (', or a name' if names else '')


def _size(text: str | None, folder: Any, frozen: Any) -> tuple[int, int]:
  """(height, width) of the pictures to work at."""
  settings = folder.settings
  factor = frozen.autoencoder.factor if frozen.autoencoder else 1
  own = settings.image_size * factor, settings.image_size * factor
  if text is None:
    return own
  parts = text.lower().split('x')
  if len(parts) != 2 or not all(p.isascii() and p.isdigit() and 0 < int(p) < 2**16 for p in parts):
    raise errors.ConfigError(f'--size={text} must be HEIGHTxWIDTH in pixels, such as 512x768')
  size = int(parts[0]), int(parts[1])
  if size == own:
    return own
  if settings.network != 'latent_unet':
    raise errors.ConfigError(
      f'--size={text}: {folder.path} works at {own[0]}x{own[1]} alone; only the U-Nets of latents '
      'take other sizes'
    )
  step = factor * 2 ** (len(settings.multipliers) - 1)
  if size[0] % step or size[1] % step:
    near = [max(step, round(n / step) * step) for n in size]
    raise errors.ConfigError(
      f'--size={text} must be multiples of {step}, which the network halves; take '
      f'{near[0]}x{near[1]}'
    )
  return size
