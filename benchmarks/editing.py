"""Quality of few-step edits, transfers and inpaintings of digits, beside many undistilled steps.

  python benchmarks/editing.py --workdir=runs/digits --painting=runs/painting [--out=FILE.json]

--workdir is a finished run of configs/digits.py with --config.encoder=True; --painting is a
finished run of configs/digits.py:inpainting. Every figure is over the held-out digits and is
measured by the classifier of --workdir, which was trained on the training digits. `accuracy` is how
often the classifier sees the class that was asked for. `rms` is the distance of a result from its
source, with pixels in [-1, 1]. `fd` is the Fréchet distance to the training digits in the
classifier's features. The script prints Markdown tables; nothing is timed.
"""

import argparse
import json
import pathlib
import sys

import jax
import numpy as np

from gdistill.core import masks
from gdistill.devices import mesh as meshes
from gdistill.drawing import editor
from gdistill.evaluation.features import extractors
from gdistill.evaluation.figures import statistics
from gdistill.evaluation.grid import run as grid_run
from gdistill.frozen import networks as frozen_networks
from gdistill.rounds import folder as folders
from gdistill.training import assemble
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import storage

_STRENGTHS = (0.25, 0.5, 0.75)


def main() -> None:
  p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  p.add_argument('--workdir', required=True)
  p.add_argument('--painting', default='')
  p.add_argument(
    '--steps', type=int, default=1024, help='DDIM steps of undistilled networks (default 1024)'
  )
  p.add_argument(
    '--teacher_steps', type=int, default=256, help='sampling steps of the teacher (default 256)'
  )
  p.add_argument('--images', type=int, default=10_000, help='held-out digits to use, at most')
  p.add_argument('--out')
  args = p.parse_args()
  meshes.use_compile_cache()
  run = _Run(args.workdir, args.images)
  found = {'floors': _floors(run), 'trips': _trips(run, args.steps)}
  found['edits'] = _edits(run, args.teacher_steps)
  if args.painting:
    found['paintings'] = _paintings(run, _Rounds(args.painting), args.teacher_steps)
  for name, rows in found.items():
    print(f'\n## {name}\n\n{_table(rows)}')
  if args.out:
    pathlib.Path(args.out).write_text(json.dumps(found, indent=1))


class _Rounds:
  """The finished rounds of a run."""

  def __init__(self, workdir: str):
    self.workdir = storage.path(workdir)
    paths = (self.workdir / name for name in storage.list_dir(self.workdir))
    found = [path for path in paths if finished_rounds.is_finished(path)]
    cards = [(path, finished_rounds.read_card(path)) for path in found]
    self._paths = {(card['stage'], card['num_steps']): path for path, card in cards}

  def folder(self, stage: str, num_steps: int = 0) -> folders.Folder:
    """Returns the round of a stage that was distilled for `num_steps` steps."""
    if (stage, num_steps) not in self._paths:
      raise SystemExit(f'{self.workdir} has no finished round of {stage} for {num_steps} steps')
    return folders.read_folder(self._paths[stage, num_steps])

  def ladder(self, stage: str) -> list[int]:
    """Returns the step counts of the rounds of a stage, largest first."""
    return sorted((n for s, n in self._paths if s == stage), reverse=True)


class _Run(_Rounds):
  """A finished run with its held-out pictures, and the classifier that measures results."""

  def __init__(self, workdir: str, images: int):
    super().__init__(workdir)
    run = assemble.of_workdir(self.workdir)
    train, held = run.pictures
    self.extractor = grid_run.extractor_of(run)
    self.pixels, self.labels = held.some(min(images, len(held)))
    self.classes = run.num_classes
    self.train = train.some(10_000)
    self.real = statistics.Moments.of(self._features(self.train[0])[0])

  @property
  def other(self) -> np.ndarray:
    """A different class for each picture, taking all other classes in turn."""
    return (self.labels + 1 + np.arange(len(self.labels)) % (self.classes - 1)) % self.classes

  def rows(self, label: np.ndarray, w: float, **more) -> dict:
    """Returns the input rows of an editor for all held-out pictures."""
    count = len(self.pixels)
    rows = {
      'pixels': self.pixels, 'seeds': np.arange(count, dtype=np.uint32),
      'labels': label.astype(np.int32), 'w': np.full(count, w, np.float32),
    }  # fmt: skip
    return rows | more

  def source(self, w: float) -> dict:
    """Returns the input rows that describe the source pictures."""
    count = len(self.pixels)
    return {'from_labels': self.labels.astype(np.int32), 'from_w': np.full(count, w, np.float32)}

  def measured(self, drawn: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Returns the figures of pictures `drawn` as class `label`."""
    features, logits = self._features(drawn)
    moments = statistics.Moments.of(features)
    difference = (drawn.astype(np.float64) - self.pixels) / 127.5
    return {
      'accuracy': float(np.mean(logits.argmax(-1) == label)),
      'rms': float(np.sqrt(np.mean(difference**2, axis=(1, 2, 3))).mean()),
      'fd': float(statistics.frechet_distance(moments, self.real)),
    }

  def _features(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = extractors.extract(self.extractor, pixels)
    return found[self.extractor.features], found[self.extractor.logits]


def _floors(run: _Run) -> list[dict]:
  """Measures real pictures, as the floor of every figure."""
  rng = np.random.default_rng(0)
  pool = [np.flatnonzero(run.train[1] == k) for k in range(run.classes)]
  others = run.train[0][[rng.choice(pool[k]) for k in run.other]]
  rows = [
    {'pictures': 'the held-out digits themselves', **run.measured(run.pixels, run.labels)},
    {'pictures': 'training digits of the other class', **run.measured(others, run.other)},
  ]
  for row in rows:
    _say(row)
  return rows


def _trips(run: _Run, steps: int) -> list[dict]:
  """Measures pictures encoded under their class and decoded under the same or another class."""
  one = run.folder('guidance')
  few = [n for n in run.ladder('encoder') if n <= 16]
  kinds = [('undistilled', n, one, one) for n in (steps, *few)]
  kinds += [('distilled', n, run.folder('encoder', n), run.folder('progressive', n)) for n in few]
  rows = []
  for kind, n, encoder, decoder in kinds:
    draw = editor.editor(decoder, frozen_networks.Frozen(), 256, encoder)
    for source_w, w in ((0.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.0, 3.0)):
      for what, label in (('round trip', run.labels), ('transfer', run.other)):
        if what == 'round trip' and source_w != w:
          continue
        counts = {'num_steps': n, 'start': n, 'encode_steps': n, 'encode_stop': n}
        drawn = draw(run.rows(label, w, **run.source(source_w)), counts)
        rows.append({
          'what': what, 'walks': kind, 'steps': n, 'source_w': source_w, 'w': w,
          **run.measured(drawn, label),
        })  # fmt: skip
        _say(rows[-1])
  return rows


def _edits(run: _Run, teacher_steps: int) -> list[dict]:
  """Measures pictures noised to t = strength and denoised as another class."""
  rows = []
  kinds = [('teacher', teacher_steps, run.folder('teacher'))]
  kinds += [('student', n, run.folder('progressive', n)) for n in (4, 2)]
  for kind, n, folder in kinds:
    draw = editor.editor(folder, frozen_networks.Frozen(), 256)
    for strength in _STRENGTHS:
      if strength * n % 1:
        continue
      for w in (0.0, 1.0, 3.0):
        drawn = draw(run.rows(run.other, w), {'num_steps': n, 'start': round(strength * n)})
        calls = round(strength * n) * (2 if folder.guided else 1)
        rows.append({
          'network': kind, 'steps': n, 'strength': strength, 'calls': calls, 'w': w,
          **run.measured(drawn, run.other),
        })  # fmt: skip
        _say(rows[-1])
  return rows


def _paintings(run: _Run, painting: _Rounds, teacher_steps: int) -> list[dict]:
  """Measures pictures whose masked part is painted as the picture's own class."""
  rows, (count, height, width, _) = [], run.pixels.shape
  keys = jax.vmap(jax.random.key)(np.arange(count, dtype=np.uint32))
  half, centre = np.zeros((2, height, width, 1), np.float32)
  half[:, width // 2 :] = 1
  centre[height // 4 : -(height // 4), width // 4 : -(width // 4)] = 1
  kinds = [('inpainting teacher', teacher_steps, painting.folder('teacher'))]
  kinds += [('inpainting student', n, painting.folder('progressive', n)) for n in (4, 2, 1)]
  kinds += [('held teacher', teacher_steps, run.folder('teacher'))]
  kinds += [('held student', n, run.folder('progressive', n)) for n in (4, 2, 1)]
  covers = {
    'half': np.broadcast_to(half, (count, *half.shape)),
    'centre': np.broadcast_to(centre, (count, *centre.shape)),
    'random': np.asarray(jax.jit(masks.random, static_argnums=(1, 2))(keys, height, width)),
  }
  for kind, n, folder in kinds:
    draw = editor.painter(folder, frozen_networks.Frozen(), 256, exact=True)
    for name, mask in covers.items():
      for w in (0.0, 1.0):
        drawn = draw(run.rows(run.labels, w, mask=mask), {'num_steps': n})
        calls = n * (2 if folder.guided else 1)
        rows.append({
          'network': kind, 'steps': n, 'mask': name, 'calls': calls, 'w': w,
          **run.measured(drawn, run.labels),
        })  # fmt: skip
        _say(rows[-1])
  return rows


def _say(row: dict) -> None:
  print(' '.join(f'{k}={v:.4g}' if isinstance(v, float) else f'{k}={v}' for k, v in row.items()),
        file=sys.stderr, flush=True)  # fmt: skip


def _table(rows: list[dict]) -> str:
  lines = ['| ' + ' | '.join(rows[0]) + ' |', '|' + '---|' * len(rows[0])]
  for row in rows:
    cells = (f'{v:.3g}' if isinstance(v, float) else str(v) for v in row.values())
    lines.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


if __name__ == '__main__':
  main()
