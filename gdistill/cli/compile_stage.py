"""The process in which a plan compiles one stage: `python -m gdistill.cli.compile_stage FILE`.

FILE holds the request that plan_topology.py wrote; the result is written beside it. A compiler that
crashes takes only this process with it.
"""

import functools
import os
import sys
import threading
import time

SAMPLERS = 'samplers'  # named like a stage: the program with which students draw


def main(file: str) -> int:
  """Compiles the stage of a request, and writes the figures, or the compiler's error."""
  _end_with_parent()
  import jax

  from gdistill import errors
  from gdistill.devices import topology as topologies
  from gdistill.drawing import ahead as drawing_ahead
  from gdistill.recipe import reading
  from gdistill.training import ahead
  from gdistill.training import assemble
  from gdistill.workdir import storage

  request = storage.read_json(storage.path(file))
  chips = topologies.parse(request['topology'])
  recipe = reading.from_config(request['config'])
  say = functools.partial(print, flush=True)
  try:
    devices = topologies.devices_of(chips)
    if request['stage'] == SAMPLERS:
      found = drawing_ahead.measure(recipe, chips, devices, say)
    else:
      run = assemble.Run(recipe, devices=devices)
      found = ahead.measure(run, request['stage'], chips, say)
  except errors.GdistillError as e:
    found = {'wrong': str(e), 'kind': type(e).__name__}
  except jax.errors.JaxRuntimeError as e:
    full = 'RESOURCE_EXHAUSTED' in str(e)
    found = {'refused' if full else 'failed': errors.brief(e, 1000)}
  storage.write_json(storage.path(f'{file}.result'), found)
  return 0


def _end_with_parent() -> None:
  """Ends this process when the process that started it is gone: a compile takes many minutes."""
  parent = os.getppid()

  def watch():
    while os.getppid() == parent:
      time.sleep(1)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


if __name__ == '__main__':
  sys.exit(main(sys.argv[1]))
