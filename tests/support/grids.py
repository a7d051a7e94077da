"""The grid of a micro run: evaluated by the command, in one or two processes, and compared."""

import json
import pathlib
import socket
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
_TIMES = ('seconds_per_image',)  # keys of a row that depend on the machine


def rows_of(workdir):
  return json.loads((workdir / 'report' / 'metrics.json').read_text())


def compare(found, expected):
  """Asserts that rows are equal, figures up to the rounding of float32."""
  assert len(found) == len(expected)
  for a, b in zip(found, expected, strict=True):
    assert a.keys() == b.keys()
    for key in a.keys() - set(_TIMES):
      if isinstance(a[key], float):
        np.testing.assert_allclose(a[key], b[key], rtol=1e-5, atol=1e-5, err_msg=key)
      else:
        assert a[key] == b[key], key


HOLDS = """
import itertools, time
from gdistill.evaluation.grid import draw_and_measure
write, cells = draw_and_measure._write, itertools.count()
def hold(*given):
  if next(cells) == {cells}:
    time.sleep(3600)
  write(*given)
draw_and_measure._write = hold
"""


def command(workdir, *more, cells=None):
  """Starts `gdistill evaluate` on a workdir; returns the process, which draws at most `cells`."""
  code = 'import sys; from gdistill.cli import command; sys.exit(command.main())'
  if cells is not None:
    code = HOLDS.format(cells=cells) + code
  return subprocess.Popen(
    [sys.executable, '-c', code, 'evaluate', f'--workdir={workdir}', *more],
    cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
  )  # fmt: skip


def start(workdir, processes, *more, cells=None):
  """Starts `gdistill evaluate` in several processes that share the grid; returns the processes."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  flags = lambda i: [f'--coordinator=127.0.0.1:{port}', f'--num_processes={processes}',
                     f'--process_id={i}'] if processes > 1 else []  # fmt: skip
  return [command(workdir, *more, *flags(i), cells=cells) for i in range(processes)]


def finish(*children):
  """Waits for processes and asserts that each has succeeded."""
  for child in children:
    lines, _ = child.communicate(timeout=600)
    assert child.returncode == 0, lines


def cells_of(workdir):
  """Returns {file name: time of its last change} of the cells that are drawn."""
  folder = workdir / 'evaluation' / 'cells'
  return {p.name: p.stat().st_mtime_ns for p in folder.glob('*.npz')} if folder.exists() else {}
