"""Compiles the steps of a plan for chips that are not here, each in its own process."""

import argparse
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import Any

from gdistill import errors
from gdistill.cli import compile_stage
from gdistill.devices import mesh as meshes
from gdistill.devices import topology as topologies
from gdistill.process import progress
from gdistill.recipe import settings as recipes
from gdistill.training import ahead
from gdistill.training import assemble
from gdistill.training import checks as run_checks
from gdistill.training import topology_text
from gdistill.workdir import storage

_COMMAND = ('-m', 'gdistill.cli.compile_stage')  # arguments of Python that compile a request
_LEVELS = ('O0', 'O1', 'O2', 'O3', 'run')  # values of --level
_SAY_EVERY = 60.0  # seconds between two lines that a compile goes on


def run(args: argparse.Namespace, recipe: recipes.Recipe) -> int:
  """Compiles the stages of a plan for --topology, and prints and writes the figures."""
  chips = topologies.parse(args.topology)
  if not 0 < args.mfu <= 1:
    raise errors.ConfigError(f'--mfu={args.mfu} must be above 0 and at most 1, such as 0.4')
  if args.level not in _LEVELS:
    raise errors.ConfigError(f'--level={args.level} must be one of {", ".join(_LEVELS)}')
  if not args.minutes > 0:
    raise errors.ConfigError(f'--minutes={args.minutes} must be above 0')
  planned = assemble.Run(recipe, args.workdir or None, chips.devices)
  stages = args.stage or ([] if args.samplers else list(planned.setups))
  for stage in stages:
    if stage not in planned.setups:
      raise errors.ConfigError(
        f'--stage={stage} is no stage of this config; take one of {", ".join(planned.setups)}'
      )
  run_checks.mesh(planned)
  stages = [*stages, compile_stage.SAMPLERS] if args.samplers else stages
  if args.json and storage.exists(storage.path(args.json)):
    raise errors.ConfigError(f'--json={args.json} exists already; choose another file')
  compiler = Compiler(planned, chips, args.minutes, args.level)
  if args.kept:
    found = {stage: kept for stage in stages if (kept := compiler.kept(stage))}
    if not found:
      raise errors.ConfigError(
        f'--kept: no step of this config was compiled for {chips} on this machine yet; leave '
        '--kept out'
      )
  else:
    topologies.check_installed(chips)
    found = {stage: compiler.figures(stage) for stage in stages}
  print(topology_text.describe(found, planned.plan, chips, args.mfu))
  if args.json:
    about = {'topology': str(chips), 'devices': chips.devices, 'mesh': dict(planned.mesh.shape)}
    storage.write_json(storage.path(args.json), {**about, 'stages': found})
  return 0


@dataclasses.dataclass(frozen=True)
class Compiler:
  """Compiles the programs of a planned run for `chips`, each in its own process.

  `level` is XLA's optimization level, or 'run' for the one with which runs are compiled. A process
  that takes more than `minutes` is ended.
  """

  run: assemble.Run
  chips: topologies.Topology
  minutes: float
  level: str

  def figures(self, stage: str) -> dict[str, Any]:
    """Returns the figures of a stage's train step, or of the program 'samplers'.

    The figures are those of `compiled.figures`. A program that needs more memory than there is has
    the compiler's words as 'refused'. If the compiler failed or crashed, or took too long, 'failed'
    says so. Figures and refusals are kept in ~/.cache/gdistill/plans.
    """
    name = f'{stage} for {self.chips}'
    found = self.kept(stage)
    if found is not None:
      progress.say(f'{name}: compiled before')
      return found
    request = {
      'config': self.run.config, 'stage': stage, 'topology': str(self.chips)
    }  # fmt: skip
    environment = {**os.environ, **topologies.environment(self.chips)}
    environment['JAX_OPTIMIZATION_LEVEL'] = 'UNKNOWN' if self.level == 'run' else self.level
    with tempfile.TemporaryDirectory(prefix='gdistill-plan-') as folder:
      file = pathlib.Path(folder) / 'request.json'
      file.write_text(json.dumps(request), encoding='utf-8')
      failed = _compile(file, name, self.minutes, environment)
      result = pathlib.Path(f'{file}.result')
      if not result.exists():
        return {'failed': failed}
      found = {'level': self.level, **json.loads(result.read_text(encoding='utf-8'))}
    if 'wrong' in found:
      raise getattr(errors, found['kind'])(found['wrong'])
    if 'failed' not in found and (file := self._file(stage)) is not None:
      try:
        storage.write_json(file, found)
      except errors.CheckpointError as e:  # the figures are printed all the same
        progress.say(f'{name}: the figures are not kept: {e}')
    return found

  def kept(self, stage: str) -> dict[str, Any] | None:
    """Returns the figures that an earlier plan kept for the same program, or None."""
    file = self._file(stage)
    if file is None or not storage.exists(file):
      return None
    try:
      return storage.read_json(file)
    except errors.CheckpointError:
      return None  # a damaged file is written again

  def _file(self, stage: str) -> storage.epath.Path | None:
    """Returns the file in which the figures of a stage are kept, or None without a home folder."""
    folder = meshes.cache_folder('plans')
    if not folder:
      return None
    run, sampling = self.run, stage == compile_stage.SAMPLERS
    parts = {
      'topology': str(self.chips),
      'level': self.level,
      'mesh': dict(run.mesh.shape),
      'setup': run.digest if sampling else repr(dataclasses.asdict(run.setups[stage])),
      'fields': repr(ahead.fields(run)),
      'versions': {p: _version(p) for p in ('jax', 'jaxlib', 'flax', 'optax', 'libtpu')},
      'sources': _sources(),
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    return storage.path(os.path.join(folder, f'{digest}.json'))


def _compile(file: pathlib.Path, name: str, minutes: float, environment: Mapping[str, str]) -> str:
  """Runs the process that compiles; returns why it gave no result, or ''."""
  began = time.monotonic()
  with tempfile.TemporaryFile() as log:
    child = subprocess.Popen(
      [sys.executable, *_COMMAND, str(file)],
      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=environment, text=True,
      start_new_session=True,
    )  # fmt: skip
    try:
      phases: queue.Queue = queue.Queue()
      threading.Thread(
        target=lambda: [phases.put(p.strip()) for p in child.stdout], daemon=True
      ).start()
      phase, said = 'starting', began
      while child.poll() is None:
        try:
          phase = phases.get(timeout=0.2)
          said = 0.0
        except queue.Empty:
          pass
        now = time.monotonic()
        if now - began > 60 * minutes:
          return f'no result within {minutes:g} minutes, while {phase}; give more --minutes'
        if now - said > _SAY_EVERY:
          said = now
          progress.say(f'{name}: {phase}, {now - began:.0f} s')
    finally:
      child.kill()
      child.wait()
    if child.returncode == 0:
      return ''
    log.seek(0)
    lines = [line for line in log.read().decode(errors='replace').splitlines() if line.strip()]
  words = errors.brief(RuntimeError(lines[-1] if lines else 'it said nothing'))
  if child.returncode < 0:
    return f'the compiler crashed with signal {-child.returncode} while {phase}: {words}'
  return f'exit code {child.returncode} while {phase}: {words}'


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return ''


def _sources() -> str:
  """Returns a digest of the sources of gdistill, any of which may change the compiled step."""
  digest = hashlib.sha256()
  top = pathlib.Path(__file__).parents[1]
  for file in sorted(top.rglob('*.py')):
    digest.update(file.relative_to(top).as_posix().encode() + file.read_bytes())
  return digest.hexdigest()
