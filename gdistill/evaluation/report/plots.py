"""Draws the plots of the report page: inline SVG by matplotlib, in colours of the style sheet."""

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import markupsafe
import matplotlib
import numpy as np
from matplotlib import figure
from matplotlib import ticker

# A curve of a plot: (index of the line style, x values, y values).
Line = tuple[int, Sequence[float], Sequence[float]]

# Okabe and Ito's palette, whose colours colour-blind readers can tell apart
_COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
_MARKS = ('o', 's', '^', 'D', 'v', 'P')
_DASHES = ('-', '--', '-.', ':', (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
_INK = '#0a0b0c'  # `_svg` replaces this colour by currentColor, the text colour of the page
_FLAT = ('--', ':')  # dash styles of two horizontal lines: the teacher, held-out images
STYLES = len(_COLOURS)
_RC = {
  'svg.fonttype': 'none',  # letters stay text, not outlines, so that the page's font is used
  'font.family': 'sans-serif',
  'font.size': 10,
  'text.parse_math': False,
  'axes.titlesize': 11,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'grid.alpha': 0.15,
  'grid.color': _INK,
  'lines.linewidth': 1.8,
  'lines.markersize': 5.5,
  **{f'{k}.color': _INK for k in ('text', 'xtick', 'ytick')},
  **{f'axes.{k}color': _INK for k in ('edge', 'label', 'title')},
}


def limits(values: Sequence[float]) -> tuple[float, float]:
  """Returns the limits (lowest, highest) of a logarithmic y axis: the range of the values with a
  margin, and at least a factor of 4 between both limits.
  """
  low, high = min(values) / 1.25, max(values) * 1.25
  widen = max(1.0, math.sqrt(4 * low / high))
  return low / widen, high * widen


def curves(
  key: str,
  lines: Iterable[Line],
  *,
  title: str,
  x: str,
  y: str,
  log_x: bool,
  limits: tuple[float, float],
  ticks: Mapping[float, str] | None,
  flat: tuple[float | None, float | None],
) -> markupsafe.Markup:
  """Returns an SVG plot of `lines` with a logarithmic y axis.

  `flat` gives the y values of two horizontal lines: FD of the teacher with the most steps, and FD
  between held-out and training images. If a y value in `flat` is None, the horizontal line is left
  out. `ticks` gives the texts of the ticks on the x axis, {x: text}; if `ticks` is None, a
  logarithmic x axis has ticks at the powers of ten.
  """
  with matplotlib.rc_context(_RC):
    fig = figure.Figure(figsize=(4.1, 2.9), layout='constrained')
    ax = fig.add_subplot()
    for i, xs, ys in lines:
      ax.plot(xs, ys, color=_COLOURS[i], marker=_MARKS[i], linestyle=_DASHES[i])
    for level, dash in zip(flat, _FLAT, strict=True):
      if level is not None:
        ax.axhline(level, color=_INK, linestyle=dash, linewidth=1, alpha=0.7)
    ax.set(title=title, xlabel=x, ylabel=y, yscale='log', ylim=limits)
    if log_x:
      ax.set_xscale('log', base=2 if ticks else 10)
    if ticks is not None:
      ax.set_xticks([*ticks], [*ticks.values()])
    elif log_x:
      ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f'{v:g}'))
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f'{v:g}'))
    ax.yaxis.set_minor_locator(ticker.NullLocator())
    return _svg(fig, key, f'{y} against {x}, {title}')


def loss(name: str, points: Sequence[tuple[float, float]]) -> markupsafe.Markup:
  """Returns an SVG plot of training losses: a thin line through `points`, each (step, loss), and a
  thicker line for the moving average.
  """
  # neighbouring losses are averaged, so that at most 240 points keep the SVG small
  parts = np.array_split(np.asarray(points, np.float64), min(len(points), 240))
  steps, losses = np.stack([p.mean(0) for p in parts]).T
  window = max(1, len(losses) // 12)
  kernel = np.ones(window)
  # each sum is divided by the number of points in the window, which is smaller near both ends
  smooth = np.convolve(losses, kernel, 'same') / np.convolve(np.ones_like(losses), kernel, 'same')
  with matplotlib.rc_context(_RC):
    fig = figure.Figure(figsize=(4.1, 2.5), layout='constrained')
    ax = fig.add_subplot()
    ax.plot(steps, losses, color=_COLOURS[0], linewidth=0.8, alpha=0.4)
    ax.plot(steps, smooth, color=_COLOURS[0])
    ax.set(title=name, xlabel='updates', ylabel='loss')
    if losses.min() > 0 and losses.max() > 5 * losses.min():
      ax.set_yscale('log')
      ax.set_ylabel('loss (log)')
      ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f'{v:g}'))
      ax.yaxis.set_minor_formatter(ticker.NullFormatter())
    ax.xaxis.set_major_locator(ticker.MaxNLocator(5))
    return _svg(fig, f'loss-{name}', f'Training loss of {name}')


def sample(style: int | None = None, flat: int | None = None) -> markupsafe.Markup:
  """Returns an SVG for the legend: a short line in the style of curve number `style` or of
  horizontal line number `flat`.
  """
  dash = _DASHES[style] if flat is None else _FLAT[flat]
  fig = figure.Figure(figsize=(0.55, 0.2))
  ax = fig.add_axes((0, 0, 1, 1))
  ax.set_axis_off()
  ax.plot(
    [0, 1, 2],
    [0, 0, 0],
    color=_INK if style is None else _COLOURS[style],
    marker=None if style is None else _MARKS[style],
    markevery=[1],
    linestyle=dash,
    linewidth=1.6,
    markersize=5,
  )
  return _svg(fig, f'legend-{style}-{dash}', '')


def _svg(fig: figure.Figure, key: str, label: str) -> markupsafe.Markup:
  """Returns the matplotlib figure as inline SVG with the page's colours and without any URL."""
  file = io.StringIO()
  # matplotlib derives the ids in an SVG from the salt, so each plot of a page has another salt
  with matplotlib.rc_context({**_RC, 'svg.hashsalt': key}):
    fig.savefig(file, format='svg', transparent=True, metadata={'Date': None})
  svg = file.getvalue()
  svg = svg[svg.index('<svg') :]
  svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
  svg = re.sub(r'<defs>\s*<style.*?</style>\s*</defs>', '', svg, flags=re.DOTALL)
  svg = re.sub(r' xmlns(:\w+)?="[^"]*"', '', svg)
  svg = re.sub(r' font-family: [^;"]*;', '', svg)
  svg = re.sub(r'<g id="[^"]*">', '<g>', svg)
  svg = svg.replace(_INK, 'currentColor')
  for i, colour in enumerate(_COLOURS):
    svg = svg.replace(colour, f'var(--c{i})')
  name = f'role="img" aria-label="{markupsafe.escape(label)}"' if label else 'aria-hidden="true"'
  # the SVG is marked as safe HTML, because matplotlib escapes all text in an SVG
  return markupsafe.Markup(svg.replace('<svg', f'<svg {name}', 1))  # noqa: S704
