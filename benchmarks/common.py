"""Shared by the benchmarks: timing in turns, results as JSON and a table, and gdistill's own step.

All calls into gdistill's internals are in this file, so a changed signature is edited once.
"""

import argparse
import collections
import dataclasses
import functools
import json
import math
import os
import pathlib
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gdistill.cli import config_file
from gdistill.devices import mesh as meshes
from gdistill.devices import sharding
from gdistill.drawing import sampling
from gdistill.frozen import networks as frozen_networks
from gdistill.process import interrupt
from gdistill.process import timing
from gdistill.recipe import reading
from gdistill.recipe import settings as recipes
from gdistill.rounds import folder as folders
from gdistill.rounds import network as networks
from gdistill.training import assemble
from gdistill.training import checks as run_checks
from gdistill.training import loop
from gdistill.training import losses as stage_losses
from gdistill.training import run as training_run
from gdistill.training import step as train_step
from gdistill.workdir import ledger
from gdistill.workdir import state as states
from gdistill.workdir import step_checkpoints
from gdistill.workdir import storage

ROOT = pathlib.Path(__file__).resolve().parent.parent
REPEATS, TURNS = 7, 4


# ---- timing


def interleaved(
  variants: Mapping[str, Callable[[], Any]], repeats: int, seconds: float
) -> dict[str, list[float]]:
  """Returns {name: [seconds of one call, in each repeat]}, timed in turns, forwards and backwards.

  In a repeat each variant has several short turns, of about `seconds` together, and its figure is
  the median of its turns: other load on the machine then slows all variants, or only one turn. A
  call must return only when its work is done.
  """
  counts = {}
  for name, call in variants.items():
    call()  # warm-up: compiles, and fills caches
    counts[name] = max(1, round(seconds / TURNS / max(_timed(call, 1), 1e-9)))
  order, taken = list(variants), {name: [] for name in variants}
  for _ in range(repeats):
    turns = {name: [] for name in variants}
    for turn in range(TURNS if seconds else 1):
      for name in order[:: -1 if turn % 2 else 1]:
        turns[name].append(_timed(variants[name], counts[name]))
    for name, values in turns.items():
      taken[name].append(statistics.median(values))
  return taken


def _timed(call: Callable[[], Any], count: int) -> float:
  began = time.perf_counter()
  for _ in range(count):
    call()
  return (time.perf_counter() - began) / count


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
  """Returns the ratio within each repeat: a machine that slows both sides does not change it."""
  return [a / b for a, b in zip(over, under, strict=True)]


def added(*lists: Sequence[float]) -> list[float]:
  """Returns the sum within each repeat."""
  return [sum(a) for a in zip(*lists, strict=True)]


def medians(taken: Mapping[str, Sequence[float]]) -> dict[str, float]:
  return {name: statistics.median(values) for name, values in taken.items()}


# ---- results


def row(
  which: str, what: str, values: float | Sequence[float], bar: str = '', unit: str = ''
) -> dict:
  """Returns one line of the table: the median, its spread, and whether the median meets the bar.

  `bar` is such as '<= 1.05', '>= 128' or '= 3'; '' means a figure without a bar.
  """
  values = [float(v) for v in np.atleast_1d(values)]
  median = statistics.median(values)
  relation, _, limit = bar.partition(' ')
  kept = {'<=': median.__le__, '>=': median.__ge__, '=': median.__eq__}
  return {
    'id': which,
    'what': what,
    'median': median,
    'low': min(values),
    'high': max(values),
    'repeats': len(values),
    'unit': unit,
    'bar': bar,
    'met': bool(kept[relation](float(limit))) if bar else None,
  }


def table(rows: Sequence[Mapping]) -> str:
  """Returns the rows as a Markdown table."""
  lines = ['| id | what | measured | spread | bar | |', '|---|---|---|---|---|---|']
  for r in rows:
    spread = f'{_short(r["low"])} to {_short(r["high"])}' if r['repeats'] > 1 else ''
    measured = f'{_short(r["median"])} {r["unit"]}'.rstrip()
    verdict = {True: 'met', False: 'missed', None: ''}[r['met']]
    lines.append(f'| {r["id"]} | {r["what"]} | {measured} | {spread} | {r["bar"]} | {verdict} |')
  return '\n'.join(lines)


def _short(value: float) -> str:
  return f'{value:,.0f}' if float(value).is_integer() or abs(value) >= 1000 else f'{value:.3g}'


def show(rows: Sequence[Mapping], **details: Any) -> None:
  """Prints the results: one JSON object on stdout, the table on stderr."""
  print(table(rows), file=sys.stderr)
  found = {'rows': list(rows), **details, 'machine': machine()}
  print(json.dumps(storage.jsonable(found), indent=2, allow_nan=False))


def machine() -> dict:
  """Returns a description of the machine that the figures were measured on."""
  cpu = platform.processor() or platform.machine()
  info = pathlib.Path('/proc/cpuinfo')
  if info.exists():
    names = re.findall(r'model name\s*:\s*(.+)', info.read_text())
    cpu = names[0] if names else cpu
  return {
    'cpu': cpu,
    'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
    'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    'load_before': _LOAD,
    'python': platform.python_version(),
    'jax': jax.__version__,
  }


# Load average of the minute before this process: shows whether the machine was busy.
_LOAD = round(os.getloadavg()[0], 2) if hasattr(os, 'getloadavg') else None


def parser(doc: str) -> argparse.ArgumentParser:
  """Returns a parser with the flags of every benchmark."""
  p = argparse.ArgumentParser(
    description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  p.add_argument('--repeats', type=int, default=REPEATS)
  p.add_argument('--seconds', type=float, default=1.0, help='timed seconds per repeat')
  p.add_argument('--smoke', action='store_true', help='tiny sizes: shows only that the script runs')
  return p


def arguments(doc: str, devices: int = 1) -> argparse.Namespace:
  """Parses the flags that every benchmark has, and makes `devices` devices of a CPU."""
  args = parser(doc).parse_args()
  return settle(args, devices)


def settle(args: argparse.Namespace, devices: int = 1) -> argparse.Namespace:
  """Applies --smoke to the repeats, and makes `devices` devices of a CPU."""
  if args.smoke:
    args.repeats, args.seconds = 1, 0.0
  meshes.make_cpu_devices(devices)
  return args


# ---- networks and recipes

# Per network: the config, and the keys of its model section that are replaced.
NETWORKS = {
  'digits': ('configs/digits.py', {}),
  'tiny': (
    'configs/digits.py',
    dict(channels=4, multipliers=(1,), emb_channels=8, w_features=4, groups=2),
  ),
  'tiny3': (
    'configs/digits.py',
    dict(
      image_channels=3, channels=4, multipliers=(1,), emb_channels=8, w_features=4, groups=2
    ),
  ),
  'small32': (
    'configs/digits.py',
    dict(
      image_size=32, image_channels=3, channels=32, multipliers=(1, 1), num_blocks=1,
      attention_resolutions=(16,), emb_channels=128, groups=8,
    ),
  ),
  'small128': (
    'configs/digits.py',
    dict(
      image_size=32, image_channels=3, channels=128, multipliers=(1, 1), num_blocks=1,
      attention_resolutions=(16,), emb_channels=512, groups=32,
    ),
  ),
  'cifar10': ('configs/cifar10.py', {}),
  'imagenet64': ('configs/imagenet64.py', {}),
  'stable_diffusion': ('configs/stable_diffusion.py', {}),
}  # fmt: skip


def recipe(network: str, batch_size: int = 64, **sections: Any) -> recipes.Recipe:
  """Returns the recipe of a network at a batch size; `sections` override keys of the config."""
  file, settings = NETWORKS[network]
  config = config_file.load(str(ROOT / file), [])
  config['model'].update(settings)
  for stage in recipes.STAGES:
    config[stage].update(batch_size=batch_size)
  for name, values in sections.items():
    if isinstance(values, dict):
      config[name].update(values)
    else:
      config[name] = values
  return reading.from_config(config)


def mesh_of(devices: int) -> jax.sharding.Mesh:
  """Returns a mesh of the first `devices` devices."""
  return jax.sharding.Mesh(np.array(jax.devices()[:devices]).reshape(1, -1, 1), meshes.AXES)


def takes_w(r: recipes.Recipe, stage: str) -> tuple[bool, bool]:
  """Returns whether the student, and whether the teacher, of a stage has an input for w."""
  return r.takes_w and stage != 'teacher', r.takes_w and stage in ('progressive', 'encoder')


def param_shapes(settings: recipes.Model, with_w: bool) -> Any:
  net = networks.build(settings, with_w, noise_settings=recipes.Noise('scaled_linear'))
  return networks.initial_shapes(net, settings)


def random_params(settings: recipes.Model, with_w: bool) -> Any:
  """Returns random numpy parameters, without a compile; as after training, no layer is zero."""
  return filled(param_shapes(settings, with_w))


def filled(shapes: Any) -> Any:
  """Returns random numpy parameters of the given shapes; see `random_params`."""
  block = np.random.default_rng(0).normal(size=1 << 16).astype(np.float32)

  def fill(path, leaf):
    if path[-1].key in ('scale', 'bias'):
      return np.full(leaf.shape, float(path[-1].key == 'scale'), leaf.dtype)
    fan_in = max(1, math.prod(leaf.shape[:-1]))
    return np.resize(block, leaf.shape).astype(leaf.dtype) / math.sqrt(fan_in)

  return jax.tree_util.tree_map_with_path(fill, shapes)


def count(params: Any) -> int:
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def network(settings: recipes.Model, with_w: bool) -> Callable:
  """Returns (params, z, logsnr, label, w) -> v, a bare network."""
  net, noise = networks.build(settings, with_w), networks.noise(recipes.Noise('cosine'))

  def forward(params, z, logsnr, label, w):
    return networks.as_v_fn(net, params, settings, noise)(z, logsnr, {'label': label}, w)

  return forward


def inputs(settings: recipes.Model, batch: int) -> tuple:
  """Returns random inputs (z, logsnr, label, w) for `network`."""
  rng = np.random.default_rng(1)
  z = rng.normal(size=(batch, *networks.image_shape(settings))).astype(np.float32)
  logsnr, w = rng.uniform(-5, 5, batch), rng.uniform(0, 4, batch)
  label = rng.integers(0, settings.num_classes, batch).astype(np.int32)
  return z, logsnr.astype(np.float32), label, w.astype(np.float32)


# ---- gdistill's own step


@dataclasses.dataclass
class Step:
  """The train step of one stage, made as in the pipeline, with its state, teacher and batch."""

  recipe: recipes.Recipe
  stage: str
  devices: int = 1

  def __post_init__(self):
    self.settings = self.recipe.settings(self.stage)
    self.mesh = mesh_of(self.devices)
    self.whole = sharding.replicated(self.mesh)
    student_w, teacher_w = takes_w(self.recipe, self.stage)
    self.params = random_params(self.recipe.model, student_w)
    self.teacher = None
    if self.stage != 'teacher':
      teacher = networks.as_teacher(self.recipe.model, random_params(self.recipe.model, teacher_w))
      self.teacher = sharding.put_like(sharding.tree_shardings(self.mesh, teacher), teacher)
    self.batch = self.put(self.host_batch())
    given = train_step.numbers(1_000_000, 1e-4, 4, jax.random.key(0))
    self.given = sharding.put_like(jax.tree.map(lambda _: self.whole, given), given)
    self.state = self.fresh()
    self.metrics = None

  @property
  def function(self) -> Callable:
    """Returns the step before compilation, (state, teacher, batches, given) -> (state, metrics)."""
    loss = stage_losses.loss_of(assemble.setup_of(self.recipe, self.stage))
    return train_step.make_step(loss, self.settings, meshes.is_cpu(self.mesh), self.mesh)

  @functools.cached_property
  def compiled(self) -> Any:
    arguments = (self.state, self.teacher, self.batch, self.given)
    return train_step.trace_step(self.function, *arguments).lower().compile()

  def fresh(self) -> states.TrainState:
    make = functools.partial(
      states.create, tx=train_step.optimizer(self.settings), with_ema=self.settings.ema > 0
    )
    shardings = train_step.state_shardings(self.mesh, jax.eval_shape(make, self.params))
    return sharding.put_like(shardings, make(self.params))

  def host_batch(self) -> dict:
    """Returns a random batch of uint8 pictures as the data pipeline yields it: [1, rows, ...]."""
    rng, size = np.random.default_rng(2), self.settings.batch_size
    shape = networks.image_shape(self.recipe.model)
    return {
      'pixels': rng.integers(0, 256, (1, size, *shape), np.uint8),
      'label': rng.integers(0, self.recipe.model.num_classes, (1, size)).astype(np.int32),
      'id': np.arange(size, dtype=np.int32)[None],
    }

  def put(self, batch: dict) -> dict:
    return jax.device_put(batch, sharding.batches_sharding(self.mesh))

  def __call__(self) -> None:
    """Makes one update and waits for the result."""
    self.dispatch()
    jax.block_until_ready(self.metrics)

  def dispatch(self) -> None:
    """Dispatches one update; stays at most one update ahead of the devices, as loop.fit does."""
    before = self.metrics
    self.state, self.metrics = self.compiled(self.state, self.teacher, self.batch, self.given)
    jax.block_until_ready(before)


def fit(
  r: recipes.Recipe, workdir: pathlib.Path, compiled: dict
) -> tuple[list[float], timing.Seconds]:
  """Runs the pipeline; returns the seconds of loop.fit in each round, and the run's own account.

  `compiled` is a cache of the stages' compiled steps: steps found in `compiled` are used again.
  """
  taken, seconds, original = [], timing.Seconds(), loop.fit

  def timed(*args, **kwargs):
    began = time.perf_counter()
    state = original(*args, **kwargs)
    jax.block_until_ready(state)
    taken.append(time.perf_counter() - began)
    return state

  loop.fit = timed
  try:
    run = assemble.Run(r, workdir)
    run_checks.everything(run)
    training_run.train(run, interrupt.Interrupt(), seconds, compiled)
  finally:
    loop.fit = original
  return taken, seconds


def events(workdir: pathlib.Path) -> collections.Counter:
  """Returns how often each event is in the ledger of a run."""
  return collections.Counter(e['event'] for e in ledger.ledger(workdir))


def save(folder: pathlib.Path, step: int, state: Any) -> float:
  """Returns the seconds of one synchronous save."""
  began = time.perf_counter()
  step_checkpoints.save_step(folder, step, state, keep=2)
  return time.perf_counter() - began


def save_async(folder: pathlib.Path, step: int, state: Any) -> float:
  """Returns the seconds that a background save blocks its caller; waits for the save to end."""
  with step_checkpoints.Saver(folder, keep=2) as saver:
    began = time.perf_counter()
    saver.save(step, state)
    blocked = time.perf_counter() - began
    saver.wait()
  return blocked


def folder(r: recipes.Recipe, stage: str) -> folders.Folder:
  """Returns a finished round with random parameters, as folders.read_folder would."""
  with_w = takes_w(r, stage)[0]
  card = {'takes_w': with_w, 'guided': stage == 'teacher', 'num_steps': 0, 'sampler': 'any'}
  card['class_names'] = []
  net = networks.build(r.model, with_w, noise_settings=r.noise)
  params = random_params(r.model, with_w)
  return folders.Folder(storage.path('.'), card, r.model, r.noise, net, params)


def finished(workdir: str, num_steps: int) -> tuple[dict[str, folders.Folder], list[int]]:
  """Returns the teacher and the student of a finished run, and the step counts of its students.

  The first result is {} if the run has no student for `num_steps` steps.
  """
  root = storage.path(workdir)
  run = assemble.of_workdir(root)
  students = {one.num_steps: one.name for one in run.plan if one.num_steps}
  if num_steps not in students:
    return {}, sorted(students)
  teacher, student = run.teacher_folder, root / students[num_steps]
  read = {'teacher': folders.read_folder(teacher), 'student': folders.read_folder(student)}
  return read, sorted(students)


def text_sampler(
  read: folders.Folder, batch: int, frozen: frozen_networks.Frozen
) -> sampling.Sampler:
  """Returns a sampler from prompts to pixels, with the given frozen networks."""
  return sampling.Sampler(read, 'ddim', batch, frozen)


def sampler(read: folders.Folder, batch: int) -> sampling.Sampler:
  """Returns the compiled sampler that a round was distilled for."""
  kind = sampling.own_sampler(read.card) if read.num_steps else 'ddim'
  return sampling.Sampler(read, kind, batch)


def calls_a_step(read: folders.Folder) -> int:
  """Returns the number of network calls of one sampling step."""
  return 2 if read.guided else 1
