"""P8: how long a save blocks training, and what the digests of a save cost.

  python benchmarks/checkpoint.py

The state is that of a stage-one student (parameters, EMA, Adam's two moments), saved on the disk
of the temporary files (TMPDIR). "Blocked" is the time until training may continue. "Digests" is the
time for the sha256 of every leaf and every file, on one thread per core, as in a save; "write" is
the rest of the save.
"""

import pathlib
import tempfile
import time

import common
import jax
import numpy as np

from gdistill.workdir import checkpoints
from gdistill.workdir import leaves as tree_leaves


def main() -> None:
  args = common.arguments(__doc__)
  network = 'tiny' if args.smoke else 'small128'
  state = common.Step(common.recipe(network, 4), 'guidance').state
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  taken = {'sync': [], 'digest': [], 'async': []}

  def changed():
    """Returns the state with new values.

    Equal values would not be written again, and an array that was copied to the host once would
    not be copied again.
    """
    nonlocal state
    state = jax.block_until_ready(jax.tree.map(lambda a: a + 1, state))
    return state

  with tempfile.TemporaryDirectory() as scratch:
    scratch = pathlib.Path(scratch)
    for repeat in range(args.repeats + 1):
      taken['sync'].append(common.save(scratch / 'sync', repeat, changed()))
      taken['digest'].append(digest_seconds(state, scratch / 'sync' / str(repeat)))
      taken['async'].append(common.save_async(scratch / 'async', repeat, changed()))
  taken = {name: values[1:] for name, values in taken.items()}  # the first repeat is a warm-up
  values = common.ratios(taken['async'], taken['sync'])
  text = f'blocked by an async save over a sync one, {size:,} bytes'
  rows = [common.row('P8', text, values, '<= 0.35')]
  write = [a - b for a, b in zip(taken['sync'], taken['digest'], strict=True)]
  values = common.ratios(taken['digest'], write)
  rows.append(common.row('P8', f'digests over the write, {size:,} bytes', values, '<= 0.10'))
  common.show(rows, seconds=common.medians(taken), bytes=size)


def digest_seconds(state, folder: pathlib.Path) -> float:
  """Returns the seconds for the digests of all leaves and files, by the functions of a save."""
  leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
  began = time.perf_counter()
  tree_leaves.in_threads(tree_leaves.entry, leaves)
  checkpoints.file_digests(folder)
  return time.perf_counter() - began


if __name__ == '__main__':
  main()
