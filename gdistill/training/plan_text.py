"""Builds the text that --plan prints: rounds, updates, parameters, and bytes per device."""

from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from gdistill.rounds import plan as plans
from gdistill.training import shapes as stage_shapes
from gdistill.training import stage_setup
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import storage


def describe(
  plan: Sequence[plans.Round],
  setups: Mapping[str, stage_setup.StageSetup],
  student_shapes: Any,
  mesh: Mesh,
  workdir: storage.epath.Path | None = None,
) -> str:
  """Returns the text that --plan prints; no training is started and no file is written.

  With `workdir`, the last line says which rounds are finished in the workdir.
  """
  from clu import parameter_overview

  lines = [parameter_overview.get_parameter_overview(student_shapes, include_stats=False), '']
  lines += [*_rounds(plan, setups), '', *_devices(setups, mesh)]
  lines.append(
    f'compiled train steps: {len(setups)} ({", ".join(setups)}), each once for its rounds'
  )
  if workdir is not None:
    done = [r.name for r in plan if finished_rounds.is_finished(workdir / r.name)]
    todo = [r.name for r in plan if r.name not in done]
    lines.append(f'finished in {workdir}: {", ".join(done) or "none"}; to do: {len(todo)} rounds')
  return '\n'.join(lines)


def _rounds(plan: Sequence[plans.Round], setups: Mapping[str, stage_setup.StageSetup]) -> list[str]:
  """Returns a line of text for each round, and a line with the totals of all rounds."""
  lines = [f'{"round":24}{"updates":>11}{"lr":>9}{"batch":>7}{"images seen":>15}  learns from']
  images = 0
  for r in plan:
    batch = setups[r.stage].settings.batch_size
    images += r.steps * batch
    lines.append(
      f'{r.name:24}{r.steps:11,}{r.lr:9g}{batch:7,}{r.steps * batch:15,}  {r.teacher or "data"}'
    )
  updates = sum(r.steps for r in plan)
  return [*lines, f'{"total":24}{updates:11,}{"":16}{images:15,}']


def _devices(setups: Mapping[str, stage_setup.StageSetup], mesh: Mesh) -> list[str]:
  """Returns lines of text: the axes of the mesh, and the bytes held per device in each stage."""
  sizes = ' x '.join(f'{name}={size}' for name, size in mesh.shape.items())
  lines = [
    f'mesh: {sizes} = {mesh.size} devices',
    f'{"bytes held per device":24}{"parameters":>16}{"moments, mean":>16}{"teacher":>16}{"all":>16}'
    f'{"images":>8}',
  ]
  for stage, setup in setups.items():
    held = stage_shapes.bytes_per_device(setup, mesh)
    rows = setup.settings.batch_size // setup.settings.accumulation // mesh.size
    each = ''.join(f'{n:16,}' for n in (*held, sum(held)))
    lines.append(f'{stage:24}{each}{rows:8,}')
  return lines
