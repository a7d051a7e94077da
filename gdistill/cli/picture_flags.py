"""The flags that edit, inpaint and transfer share, and the checks of these flags."""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

from gdistill import errors
from gdistill.cli import command_line
from gdistill.cli import drawing_flags
from gdistill.cli import source_pictures
from gdistill.recipe import class_names

NONE = 'none'  # the value of --label for the null condition


def parser(name: str, description: str) -> command_line.Parser:
  """Returns the parser of the command `name`, with the flags of edit, inpaint and transfer."""
  p = command_line.Parser(prog=f'gdistill {name}', description=description)
  p.add_argument('--folder', required=True, help='folder of a finished round: WORKDIR/<round>')
  p.add_argument('--image', required=True, help='picture to change, or a folder of pictures')
  p.add_argument(
    '--label',
    help=f'class to draw, {drawing_flags.LABEL}; {NONE} draws without a class, if the network was '
    'trained to',
  )
  p.add_argument('--prompt', help='text to draw, for a network that is conditioned on text')
  drawing_flags.add(p)
  p.add_argument(
    '--seeds', default='0',
    help='seeds of the noise, such as 3, 0..3 or 1,5; every picture gives one result for each seed '
    '(default 0)',
  )  # fmt: skip
  p.add_argument(
    '--size',
    help="WIDTHxHEIGHT in pixels to work at (default: the network's own size); pictures of another "
    'size are cropped in the centre to this shape and resized by area',
  )
  p.add_argument(
    '--scale', type=int,
    help='factor that enlarges the pictures on sheet.png (default: to about 64 pixels a side)',
  )  # fmt: skip
  p.add_argument(
    '--out', required=True,
    help='folder for the results: new, empty, or begun by the same command, which then resumes',
  )  # fmt: skip
  return p


def add_source(p: command_line.Parser, when: str = '') -> None:
  """Adds the flags of the inversion, which turns a picture into noise.

  `when` is put at the end of each flag's help text.
  """
  p.add_argument(
    '--source_label', help=f'class that the picture shows, given as in --label, or {NONE}{when}'
  )
  p.add_argument(
    '--source_prompt',
    help=f'text of what the picture shows, for a network that is conditioned on text{when}',
  )
  p.add_argument(
    '--source_w', type=float,
    help=f'guidance strength of the inversion (default: the smallest w of the encoder){when}',
  )  # fmt: skip
  p.add_argument(
    '--encoder', default='',
    help='folder of the round that inverts: an encoder round, or a network that was not distilled '
    f'to few steps (default: --folder){when}',
  )  # fmt: skip
  p.add_argument(
    '--encode_steps', type=int,
    help='number of steps of the inversion (default: the number that the encoder was distilled '
    f'for; 64 for an undistilled network){when}',
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Condition:
  """The condition to sample under: a class label, or the prompt of a text-conditioned network.

  `label` is the number of the class, -1 for the null condition, or 0 if `prompt` is given.
  """

  label: int
  prompt: str | None = None

  def row(self, frozen: Any, whose: str = '') -> dict[str, Any]:
    """Returns the condition as arrays of one row, under the names that drawing.editor reads.

    `whose` is the prefix of each array's name: '' for the condition of the pictures to sample,
    'from_' for the condition of the source pictures.
    """
    import numpy as np

    row = {f'{whose}labels': np.array([self.label], np.int32)}
    if self.prompt is not None:
      row[f'{whose}prompts'] = frozen.tokens([self.prompt])
    return row


@dataclasses.dataclass(frozen=True)
class Encoder:
  """The round that inverts pictures, with the number of steps, w and condition of the inversion."""

  path: str
  num_steps: int
  w: float
  condition: Condition


@dataclasses.dataclass(frozen=True)
class Checked:
  """The flags of edit, inpaint and transfer, after all checks that need no network weights.

  `card` is the content of card.json, the record of the finished round in --folder.
  """

  card: dict
  settings: Any
  drawing: drawing_flags.Drawing
  condition: Condition
  sources: source_pictures.Sources


def check(args) -> Checked:
  """Returns the checked values of the flags that edit, inpaint and transfer share.

  Raises ConfigError if a flag does not fit the round in --folder. Raises DataError if --image names
  no picture.
  """
  from gdistill.process import progress
  from gdistill.rounds import folder as folders
  from gdistill.workdir import finished as finished_rounds

  card = finished_rounds.read_card(args.folder)
  drawing = drawing_flags.drawing(args, card)
  wanted = condition(args.folder, card, args.label, args.prompt)
  sources = source_pictures.Sources(args.image, '--image')
  for line in sources.notes:
    progress.say(line)
  if source_pictures.inside(args.out, args.image):
    raise errors.ConfigError(
      f'--out={args.out} lies in --image={args.image}, so that the results would be taken for '
      'pictures to change; give a folder outside --image'
    )
  return Checked(card, folders.settings_of(card)[0], drawing, wanted, sources)


def encoder(args, checked: Checked) -> Encoder:
  """Returns the Encoder for the round in --encoder, or in --folder if --encoder is missing.

  Raises ConfigError if the round of the Encoder cannot invert pictures.
  """
  from gdistill.drawing import editor
  from gdistill.drawing import sampling
  from gdistill.workdir import finished as finished_rounds

  where = args.encoder or args.folder
  card = finished_rounds.read_card(where)
  if checked.card.get('sampler') == 'stochastic':
    raise errors.ConfigError(
      f'--folder={args.folder} was distilled for the stochastic sampler, which adds its own noise '
      'in every step; give a round that was distilled for the deterministic sampler, ddim'
    )
  if card['stage'] != 'encoder' and card['num_steps']:
    missing = f'--encoder={where}' if args.encoder else f'--encoder is missing: {where}'
    raise errors.ConfigError(
      f'{missing} was distilled to draw in {card["num_steps"]} steps and cannot invert pictures; '
      'give the folder of an encoder round (--config.encoder=True trains encoder rounds) as '
      '--encoder, or of a round that was not distilled to few steps: the teacher or stage one'
    )
  if card['predict'] == 'x':
    raise errors.ConfigError(
      f'--encoder={where} predicts x, which gives no estimate of the noise at t = 0; give a '
      'round whose network predicts v or eps'
    )
  editor.check_pair(checked.card, card, where)
  num_steps = _encode_steps(args, card, where)
  smallest = 0.0 if card['guided'] else card['w_min']
  w = smallest if args.source_w is None else args.source_w
  sampling.check_w(f'--source_w={w}', w, card)
  source = condition(where, card, args.source_label, args.source_prompt, 'source_')
  drawing_flags.check_strength(where, card, '--source_w', w)
  return Encoder(where, num_steps, w, source)


def _encode_steps(args, card: dict, where: str) -> int:
  """Returns the number of steps of the inversion.

  Raises ConfigError if the encoder in the folder `where` was distilled for another number of steps
  than --encode_steps.
  """
  from gdistill.drawing import sampling

  steps = args.encode_steps if args.encode_steps is not None else card['num_steps'] or 64
  if card['num_steps'] and steps != card['num_steps']:
    raise errors.ConfigError(
      f'--encode_steps={steps}: {where} was distilled for {card["num_steps"]} steps; use '
      f'--encode_steps={card["num_steps"]}'
    )
  sampling.check_count('--encode_steps', steps, where, card)
  return steps


def condition(
  where: str, card: dict, label: str | None, prompt: str | None, flag: str = ''
) -> Condition:
  """Returns the condition that --label or --prompt names, for the round in the folder `where`.

  Raises ConfigError if the round has no such class, gets a label but is conditioned on text, or
  gets a prompt but is conditioned on classes. `flag` is the prefix of the flag names in error
  lines: 'source_' for --source_label and --source_prompt, '' for --label and --prompt.
  """
  from gdistill.rounds import classes
  from gdistill.rounds import folder as folders

  if (card.get('latents') or {}).get('text'):
    if label is not None:
      raise errors.ConfigError(
        f'--{flag}label={label}: {where} is conditioned on text; give --{flag}prompt'
      )
    if prompt is None:
      raise errors.ConfigError(
        f'--{flag}prompt is missing: {where} is conditioned on text; give --{flag}prompt=TEXT'
      )
    return Condition(0, prompt)
  if prompt is not None:
    raise errors.ConfigError(
      f'--{flag}prompt={prompt!r}: {where} is not conditioned on text; give --{flag}label'
    )
  names, count = classes.names_of(card), folders.settings_of(card)[0].num_classes
  if label is None:
    raise errors.ConfigError(f'--{flag}label is missing: give one of {_listed(names, count)}')
  found = classes.number(card, label, f'--{flag}label')
  drops = card['guided'] and folders.null_of(card) not in ('none', 'network')
  if label == NONE and found is not None and drops:
    raise errors.ConfigError(
      f'--{flag}label={NONE} can mean no class or the class {found}, {NONE!r}, of {where}: give '
      f'{classes.NO_CLASS} for no class, or number:{found}'
    )
  if found is not None:
    return Condition(found)
  if label in (NONE, classes.NO_CLASS):
    if drops:
      return Condition(-1)
    raise errors.ConfigError(
      f'--{flag}label={label}: {where} was trained on pictures with a class only; give a class'
    )
  # If `label` is a number, the error suggests no similar class, because classes with similar
  # numbers, such as 2 and 12, are unrelated.
  number = label.lstrip('+-').isdigit()
  near = [] if number else difflib.get_close_matches(label, names, 1)
  raise errors.ConfigError(
    f'--{flag}label={label} is not a class of {where}; '
    + (f'did you mean {near[0]}?' if near else f'give one of {_listed(names, count)}')
  )


def in_words(args, checked: Checked, encoder: Encoder | None) -> str:
  """Returns a line that says by number and name which classes are drawn, or '' for prompts."""
  from gdistill.rounds import classes
  from gdistill.workdir import finished as finished_rounds

  if checked.condition.prompt is not None:
    return ''
  line = f'--label={args.label} draws {classes.shown(checked.card, [checked.condition.label])}'
  if encoder is None:
    return line
  card = finished_rounds.read_card(encoder.path)
  line += (
    f'; --source_label={args.source_label} is {classes.shown(card, [encoder.condition.label])}'
  )
  theirs, ours = classes.names_of(card), classes.names_of(checked.card)
  owners = f'--encoder={encoder.path}', f'--folder={args.folder}'
  odd = class_names.difference(theirs, ours, owners) if theirs and ours else ''
  return f'{line}; their classes differ: {odd}' if odd else line


def working_size(text: str | None, settings: Any, frozen: Any) -> tuple[int, int]:
  """Returns (height, width) in pixels of the pictures that the network samples.

  `text` is the value of --size, or None for the size that the network was trained at. Raises
  ConfigError if the network cannot work at the size `text`.
  """
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
      f'--size={text}: this network works only at {own[1]}x{own[0]}; only U-Nets on latents take '
      'other sizes'
    )
  step = factor * 2 ** (len(settings.multipliers) - 1)
  if width % step or height % step:
    near = 'x'.join(str(max(step, round(n / step) * step)) for n in (width, height))
    raise errors.ConfigError(
      f'--size={text}: width and height must be multiples of {step}, because the network halves '
      f'the resolution; use --size={near}'
    )
  return height, width


def _listed(names: Sequence[str], count: int) -> str:
  if names and len(names) <= 30:
    return ', '.join(class_names.told_apart(names) if class_names.look_alikes(names) else names)
  more = f', or a name, as in {class_names.listed(names)}' if names else ''
  return f'0 to {count - 1}{more}'
