"""What edit, inpaint and transfer ask of their flags: a network, a condition, an encoder."""

import dataclasses
import difflib
import os
from collections.abc import Callable, Sequence
from typing import Any

from gdistill import errors
from gdistill.cli import asked
from gdistill.cli import edge
from gdistill.cli import results

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
    help="WIDTHxHEIGHT to work at (default: the network's own); pictures of another size are "
    'cropped to this shape, in the centre, and resized by area',
  )
  p.add_argument(
    '--scale', type=int, help='enlargement of the sheet (default: to 64 pixels a picture)'
  )
  p.add_argument('--out', required=True, help='a folder that is empty or does not exist')
  return p


def add_negative(p: edge.Parser) -> None:
  """The flag of what is guided away from."""
  p.add_argument('--negative_prompt', help='what a guided teacher points away from')


def add_source(p: edge.Parser, when: str = '') -> None:
  """The flags of what a picture shows before it is changed."""
  p.add_argument('--source_label', help=f'the class it shows, or {NONE}{when}')
  p.add_argument('--source_prompt', help=f'what it shows, for a text network{when}')
  p.add_argument(
    '--source_w', type=float, help=f"w of encoding (default: the encoder's smallest){when}"
  )
  p.add_argument(
    '--encoder', default='', help=f'a round distilled to encode, or an undistilled one{when}'
  )
  p.add_argument(
    '--encode_steps', type=int, help=f"default: the encoder's own; 64 undistilled{when}"
  )


@dataclasses.dataclass(frozen=True)
class Condition:
  """A class, or a prompt of a text network; label -1 is none."""

  label: int
  prompt: str | None = None

  def row(self, frozen: Any, whose: str = '') -> dict[str, Any]:
    """The same as one row that gdistill.editing reads."""
    import numpy as np

    row = {f'{whose}labels': np.array([self.label], np.int32)}
    if self.prompt is not None:
      row[f'{whose}prompts'] = frozen.tokens([self.prompt])
    return row


@dataclasses.dataclass(frozen=True)
class Encoder:
  """A round that encodes, and what it is asked for."""

  path: str
  num_steps: int
  w: float
  condition: Condition


@dataclasses.dataclass(frozen=True)
class Asked:
  """What the flags say, checked against cards and files: no parameters were read yet."""

  card: dict
  settings: Any
  walk: asked.Walk
  condition: Condition
  sources: results.Sources


def check(args) -> Asked:
  """ConfigError or DataError where a flag fits neither the round nor the files."""
  from gdistill.rounds import folder as folders
  from gdistill.workdir import finished as finished_rounds

  card = finished_rounds.read_card(args.folder)
  walk = asked.walk(args, card)
  wanted = condition(args.folder, card, args.label, args.prompt)
  sources = results.Sources(args.image, '--image')
  if results.inside(args.out, args.image):
    raise errors.ConfigError(
      f'--out={args.out} lies in --image={args.image}, whose pictures results would be taken for; '
      'name a folder outside'
    )
  return Asked(card, folders.settings_of(card)[0], walk, wanted, sources)


def encoder(args, of: Asked) -> Encoder:
  """What encodes, of its own flags; ConfigError where nothing does."""
  from gdistill.drawing import editor
  from gdistill.workdir import finished as finished_rounds

  where = args.encoder or args.folder
  card = finished_rounds.read_card(where)
  if of.card.get('sampler') == 'stochastic':
    raise errors.ConfigError(
      f'--folder={args.folder} was distilled for the stochastic sampler, which adds noise of its '
      'own; decode with a round of the deterministic one'
    )
  if card['stage'] != 'encoder' and card['num_steps']:
    missing = f'--encoder={where}' if args.encoder else f'--encoder is missing: {where}'
    raise errors.ConfigError(
      f'{missing} draws in {card["num_steps"]} steps and encodes nothing; name a round of an '
      'encoder ladder (--config.encoder=True), or one that is not distilled to few steps: the '
      'teacher, stage one'
    )
  if card['predict'] == 'x':
    raise errors.ConfigError(
      f'--encoder={where} predicts x, which says nothing about the noise at t = 0; name a network '
      'that predicts v or eps'
    )
  editor.check_pair(of.card, card, where)
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
  source = condition(where, card, args.source_label, args.source_prompt, 'source_')
  asked.check_strength(where, card, '--source_w', w)
  return Encoder(where, steps, w, source)


def condition(
  where: str, card: dict, label: str | None, prompt: str | None, flag: str = ''
) -> Condition:
  """What --label or --prompt stand for; `flag` is what their names begin with."""
  from gdistill.rounds import folder as folders

  if (card.get('latents') or {}).get('text'):
    if label is not None:
      raise errors.ConfigError(f'--{flag}label={label}: {where} reads text; give --{flag}prompt')
    if prompt is None:
      raise errors.ConfigError(f'--{flag}prompt is missing: {where} reads text')
    return Condition(0, prompt)
  if prompt is not None:
    raise errors.ConfigError(
      f'--{flag}prompt={prompt!r}: {where} is not conditioned on text; give --{flag}label'
    )
  names, classes = [str(n) for n in card['class_names']], folders.settings_of(card)[0].num_classes
  if label is None:
    raise errors.ConfigError(f'--{flag}label is missing: give one of {_listed(names, classes)}')
  if label == NONE and NONE not in names:
    if card['guided'] and folders.null_of(card) not in ('none', 'network'):
      return Condition(-1)
    raise errors.ConfigError(
      f'--{flag}label={NONE}: {where} has learned no picture without a class; give one'
    )
  if label in names:
    return Condition(names.index(label))
  if label.isascii() and label.isdigit() and int(label) < classes:
    return Condition(int(label))
  number = label.lstrip('+-').isdigit()  # near in letters is not near in meaning
  near = [] if number else difflib.get_close_matches(label, names, 1)
  raise errors.ConfigError(
    f'--{flag}label={label} is no class of {where}; '
    + (f'did you mean {near[0]}?' if near else f'give one of {_listed(names, classes)}')
  )


def run(
  args,
  of: Asked,
  make: Callable[..., Any],
  counts: dict[str, int],
  title: str,
  by: Encoder | None = None,
  masks: results.Sources | None = None,
  masked: Callable[..., Any] | None = None,
) -> int:
  """Reads the networks and draws; `make(folder, frozen, encoder, batch_size)` is the editor.

  `masked(i, shape, factor)` is the mask of picture i, from the files of `masks`.
  """
  import numpy as np

  from gdistill.devices import mesh as meshes
  from gdistill.frozen import networks as frozen_networks
  from gdistill.rounds import folder as folders
  from gdistill.workdir import finished as finished_rounds

  paths = [args.folder] + ([by.path] if by else [])
  request = {k: v for k, v in vars(args).items() if k not in ('out', 'debug', 'scale')}
  request['drawn_by'] = title
  request['parameters'] = [finished_rounds.params_digest(path) for path in paths]
  request['files'] = results.stamps(of.sources, *([masks] if masks else []))
  results.check_out(args.out, request)
  meshes.use_compile_cache()
  meshes.make_cpu_devices(of.card['config']['mesh']['cpu_devices'])
  folder = folders.read_folder(args.folder)
  frozen = frozen_networks.read_frozen(folder)
  size = _size(args.size, of.settings, frozen)
  row = {'w': np.array([of.walk.w], np.float32), **of.condition.row(frozen)}
  other = None
  if by is not None:
    row |= {'from_w': np.array([by.w], np.float32), **by.condition.row(frozen, 'from_')}
    counts = {**counts, 'encode_steps': by.num_steps}
    same = os.path.realpath(by.path) == os.path.realpath(args.folder)
    other = folder if same else folders.read_folder(by.path)
  shape = (*size, 3 if frozen.autoencoder else of.settings.image_channels)
  factor = frozen.autoencoder.factor if frozen.autoencoder else 1
  job = results.Job(
    title, of.sources, shape, of.walk.seeds, row, counts,
    lambda batch_size: make(folder, frozen, other, batch_size),
    (lambda i: masked(i, shape, factor)) if masked else None,
  )  # fmt: skip
  return results.run(job, args.out, request, args.scale)


def _listed(names: Sequence[str], classes: int) -> str:
  if names and len(names) <= 30:
    return ', '.join(names)
  return f'0 to {classes - 1}' + (', or a name' if names else '')


def _size(text: str | None, settings: Any, frozen: Any) -> tuple[int, int]:
  """(height, width) of the pictures to work at."""
  factor = frozen.autoencoder.factor if frozen.autoencoder else 1
  own = settings.image_size * factor, settings.image_size * factor
  if text is None:
    return own
  parts = text.lower().split('x')
  if len(parts) != 2 or not all(p.isascii() and p.isdigit() and 0 < int(p) < 2**16 for p in parts):
    raise errors.ConfigError(f'--size={text} must be WIDTHxHEIGHT in pixels, such as 768x512')
  width, height = map(int, parts)
  if (height, width) == own:
    return own
  if settings.network != 'latent_unet':
    raise errors.ConfigError(
      f'--size={text}: this network works at {own[1]}x{own[0]} alone; only the U-Nets of latents '
      'take other sizes'
    )
  step = factor * 2 ** (len(settings.multipliers) - 1)
  if width % step or height % step:
    near = 'x'.join(str(max(step, round(n / step) * step)) for n in (width, height))
    raise errors.ConfigError(
      f'--size={text} must be multiples of {step}, which the network halves; take {near}'
    )
  return height, width
