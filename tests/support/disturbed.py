"""Runs the program as users do, and kills or signals it at chosen points or times."""

import dataclasses
import json
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import time

import micro

from gdistill.cli import config_file
from gdistill.workdir import checkpoints

ROOT = pathlib.Path(__file__).parents[2]

_GRID = 'evaluation.grid'
# (module, function, before or after its call, the ending of its first argument that is a path)
POINTS = {
  'first compile': ('training.shapes', 'compile_stage', 'before', ''),
  'arrays written, no manifest': ('workdir.checkpoints', '_write_arrays', 'after', 'arrays'),
  'a step complete, none pruned': ('workdir.step_checkpoints', '_prune', 'before', ''),
  'a file half written': ('workdir.storage', '_put', 'before', 'metrics.jsonl'),
  'parameters there, no card': ('workdir.checkpoints', 'save', 'after', 'params'),
  'card there, ledger not told': ('workdir.finished', 'finish', 'after', ''),
  'hand-over': ('rounds.folder', 'read_folder', 'after', ''),
  'between two cells': (f'{_GRID}.draw_and_measure', '_write', 'before', ''),
  'a cell drawn, not measured': (f'{_GRID}.draw_and_measure', 'draw_share', 'after', ''),
  'the report': (f'{_GRID}.run', 'write', 'before', ''),
}

SCRIPT = """
import importlib, os, sys, time
from gdistill.cli import config_file, exit_codes, train
module, name, when, ending, count, number = sys.argv[1:7]
module = importlib.import_module('gdistill.' + module)
inner, left = getattr(module, name), [int(count)]
def there(args):
  paths = [str(a) for a in args if isinstance(a, (str, os.PathLike))]
  left[0] -= not ending or bool(paths and paths[0].endswith(ending))
  if left[0] == 0:
    left[0] -= 1
    print(time.monotonic(), time.process_time(), flush=True)
    os.kill(os.getpid(), int(number))
def broken(*args, **more):
  if when == 'before':
    there(args)
  out = inner(*args, **more)
  if when == 'after':
    there(args)
  return out
setattr(module, name, broken)
exit_codes.exit_process(exit_codes.call(lambda: train.main(sys.argv[7:]), False))
"""


@dataclasses.dataclass
class Left:
  """How a disturbed program ended."""

  code: int
  lines: str  # stderr
  seconds: float | None  # from the signal to the program's end; None: the point was not reached
  busy: float | None = None  # the CPU's part of that, which does not depend on other programs


def config(workdir, **sections):
  """Writes the config of a micro run beside its workdir and returns the file."""
  file = workdir.parent / f'{workdir.name}.json'
  file.write_text(json.dumps(micro.config(**sections)))
  return file


def config_of(workdir, name):
  """Writes a config from configs/, resolved, beside a workdir and returns the file."""
  file = workdir.parent / f'{workdir.name}.json'
  file.write_text(json.dumps(config_file.load(name, [])))
  return file


def command(workdir, *more):
  file = workdir.parent / f'{workdir.name}.json'
  if not file.exists():
    config(workdir)
  return [
    sys.executable, '-m', 'gdistill.main', f'--config={file}', f'--workdir={workdir}', *more,
  ]  # fmt: skip


def hears():
  """Restores the default action of SIGINT and SIGHUP: the `preexec_fn` of a child process.

  A shell's `&` and nohup set these signals to be ignored, and children inherit that.
  """
  for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)


def environment(more):
  return {**os.environ, 'JAX_PLATFORMS': 'cpu', **more}


def run(workdir, *more, **env):
  return subprocess.run(
    command(workdir, *more), cwd=ROOT, capture_output=True, text=True, env=environment(env),
  )  # fmt: skip


def start(workdir, *more, **env):
  return subprocess.Popen(
    command(workdir, *more), cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment(env),
    preexec_fn=hears,
  )  # fmt: skip


def at(point, workdir, number=signal.SIGKILL, count=1, more=()):
  """Runs the program until it reaches a point for the count-th time and signals itself there."""
  before = _cpu_of_children()
  child = subprocess.Popen(
    [sys.executable, '-c', SCRIPT, *POINTS[point], str(count), str(int(number)),
     *command(workdir, *more)[3:]],
    cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment({}),
    preexec_fn=hears,
  )  # fmt: skip
  said, lines = child.communicate(timeout=600)
  if not said.strip():
    return Left(child.returncode, lines, None)
  reached, spent = map(float, said.split()[:2])
  busy = _cpu_of_children() - before - spent
  return Left(child.returncode, lines, time.monotonic() - reached, busy)


def _cpu_of_children():
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def after(seconds, workdir, number=signal.SIGKILL, more=()):
  """Runs the program and signals it `seconds` after it has taken the lock of its workdir."""
  child = start(workdir, *more)
  while child.poll() is None and holder(workdir) != child.pid:
    time.sleep(0.02)
  time.sleep(seconds)
  sent = time.monotonic()
  child.send_signal(number)
  lines = child.communicate(timeout=600)[1]
  return Left(child.returncode, lines, time.monotonic() - sent)


def holder(workdir):
  """Returns the process id in the lock, or None; a killed process leaves its lock behind."""
  try:
    return json.loads((workdir / 'lock.json').read_text())['pid']
  except (OSError, ValueError):
    return None


def digests(workdir):
  """Returns {round: digest of its parameters} of the finished rounds."""
  rounds = sorted(p for p in workdir.iterdir() if (p / 'card.json').exists())
  return {r.name: checkpoints.tree_digest(checkpoints.manifest(r / 'params')) for r in rounds}


def figures(workdir):
  """Returns the report's rows without the measured times."""
  rows = json.loads((workdir / 'report' / 'metrics.json').read_text())
  clocks = ('seconds_per_image', 'seconds')
  return [{k: v for k, v in row.items() if k not in clocks} for row in rows]


def restorable(workdir):
  """Returns {round: complete steps} of the rounds that are not finished."""
  found = {}
  for steps in workdir.glob('*/steps'):
    found[steps.parent.name] = sorted(
      int(p.name) for p in steps.iterdir() if p.name.isdigit() and checkpoints.is_complete(p)
    )
  return found


def seeded(seed, points):
  """Returns the points in an order drawn from the seed."""
  return random.Random(seed).sample(points, len(points))
