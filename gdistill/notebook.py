"""For notebooks: samples of a finished round, a slider for w, and tables with published FDs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gdistill import errors
from gdistill.drawing import sampling
from gdistill.drawing import sheets
from gdistill.evaluation import presets
from gdistill.rounds import classes
from gdistill.rounds import folder as folders
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import storage


class Gallery:
  """Samples a finished round for fixed labels and seeds at any w, with one compiled program.

  A label is the number of a class, or a text that names the class as in `gdistill sample --labels`.
  """

  def __init__(
    self,
    folder: Any,
    labels: Sequence[int | str] | None = None,
    seeds: Sequence[int] = range(4),
    num_steps: int | None = None,
    sampler: str | None = None,
  ):
    self.card = finished_rounds.read_card(folder)
    self._sampler_name = sampler or sampling.own_sampler(self.card)
    self.num_steps = num_steps or self.card['num_steps'] or 64
    sampling.check_steps(folder, self.card, self.num_steps, self._sampler_name)
    read = folders.read_folder(folder)
    labels = range(min(10, read.settings.num_classes)) if labels is None else labels
    labels = [self._number(k) if isinstance(k, str) else k for k in labels]
    self._labels, self._seeds = np.array(labels), np.array(seeds)
    self._draw = sampling.Sampler(read, self._sampler_name, len(self._labels) * len(self._seeds))

  def _number(self, name: str) -> int:
    """Returns the number of the class called `name`; raises ConfigError if there is none."""
    found = classes.number(self.card, name, 'labels')
    if found is None:
      raise errors.ConfigError(
        f'labels: {name!r} is no class of this round; give one of the class_names of its card.json'
      )
    return found

  @property
  def network_calls(self) -> int:
    """The number of network calls that sampling one picture takes."""
    return self.num_steps * (2 if self.card['guided'] else 1)

  def pixels(self, w: float) -> np.ndarray:
    """Returns the pictures sampled at guidance strength w, uint8 [seeds, labels, H, W, C].

    Raises ConfigError if w is out of range, and NumericsError if a picture is not finite.
    """
    sampling.check_w(f'{w=}', w, self.card)
    rows, columns = len(self._seeds), len(self._labels)
    seeds, labels = self._seeds.repeat(columns), np.tile(self._labels, rows)
    pixels = self._draw(seeds, labels, np.full(len(seeds), w), self.num_steps)
    return pixels.reshape(rows, columns, *pixels.shape[1:])

  def picture(self, w: float, scale: int = 6) -> Any:
    """Returns one PIL image with a column for each label and a row for each seed."""
    return sheets.picture(sheets.sheet(self.pixels(w), scale))

  def dial(self, scale: int = 6, step: float = 0.25) -> Any:
    """Returns a slider for w, with the pictures sampled at this w below; w runs over the range that
    the round was trained for, or over 0 to 4 if the round is guided.
    """
    import ipywidgets
    from IPython import display

    low, high = (0.0, 4.0) if self.card['guided'] else (self.card['w_min'], self.card['w_max'])
    return ipywidgets.interact(
      lambda w: display.display(self.picture(w, scale)),
      w=ipywidgets.FloatSlider(
        value=min(max(1.0, low), high), min=low, max=high, step=step, continuous_update=False
      ),
    )


def rounds(folder: Any) -> dict[str, Any]:
  """Returns {name: folder} of a run's finished rounds, sorted by name, without rounds that train
  encoders (networks from picture to noise).

  `folder` is the workdir of a run, or the folder of one round. Raises ConfigError if `folder` holds
  no finished round.
  """
  folder = storage.path(folder)
  if finished_rounds.is_finished(folder):
    return {folder.name: folder}
  found = {n: folder / n for n in sorted(storage.list_dir(folder)) if '_encoder_' not in n}
  found = {name: path for name, path in found.items() if finished_rounds.is_finished(path)}
  if not found:
    raise errors.ConfigError(
      f'{folder} holds no finished round: no subfolder has a card.json; give the workdir of a run '
      'that has finished a round, or train a run first'
    )
  return found


def published_table(rows: Sequence[Mapping[str, Any]], preset: str) -> str:
  """Returns a Markdown table that compares a preset's published FD with the FD of `rows` at the
  same number of steps N and the same w.

  Only rows of students that were measured by the preset's protocol are compared: the same feature
  network, image counts and size. If no student was measured by the preset's protocol, a line below
  the table describes both protocols.
  """
  about = presets.get(preset)
  lines = ['| N | w | published | ours | source |', '|---:|---:|---:|---:|---|']
  students = [r for r in rows if (r['model'], r['stage']) == ('student', 'progressive')]
  size = f'{about.size} x {about.size}'
  theirs = (about.extractor, about.images, about.reference_images, size)
  keys = ('extractor', 'images', 'reference_images', 'reference_size')
  same = [r for r in students if tuple(r.get(k) for k in keys) == theirs]
  for one in about.published:
    keys = [k for k in ('num_steps', 'w') if k in one]
    ours = next((f'{r["fd"]:.2f}' for r in same if all(r[k] == one[k] for k in keys)), '–')
    w = f'{one["w"]:g}' if 'w' in one else '–'
    lines.append(f'| {one["num_steps"]} | {w} | {one["fd"]} | {ours} | {one["source"]} |')
  if students and not same:
    other = students[0]
    lines += [
      '',
      f'Our figures are {other["distance"]} of {other["images"]:,} images of '
      f'{other.get("reference_size")} pixels by {other["extractor"]}; the published figures are '
      f'FID of {about.images:,} images of {size} pixels by {about.extractor}, against '
      f'{about.reference_images:,} reference images: they do not compare.',
    ]
  return '\n'.join(lines)
