"""P8: how long a save keeps training waiting, and what its digests cost.

  python benchmarks/checkpoint.py

The state of a stage-one student (parameters, running mean, Adam's two moments), on the disk of the
temporary files (TMPDIR). Blocked is the time until training may go on. Digest is sha256 of every
leaf and of every file, on a thread a core, as a save takes them; write is all else it does.
"""

import pathlib
import tempfile
import time

import common
import jax
import numpy as np

from gdistill.workdir import checkpoints


def main() -> None:
  args = common.arguments(__doc__)
  network = 'tiny' if args.smoke else 'small128'
  state = common.Step(common.recipe(network, 4), 'guidance').state
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  taken = {'sync': [], 'digest': [], 'async': []}

  def changed():
    """Other values every time: what is stored already is not written again, and an array that was
    on the host once is not copied there again.
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
  taken = {name: values[1:] for name, values in taken.items()}  # the first one warms up
  values = common.ratios(taken['async'], taken['sync'])
  text = f'blocked by an async save over a sync one, {size:,} bytes'
  rows = [common.row('P8', text, values, '<= 0.35')]
  write = [a - b for a, b in zip(taken['sync'], taken['digest'], strict=True)]
  values = common.ratios(taken['digest'], write)
  rows.append(common.row('P8', f'digests over the write, {size:,} bytes', values, '<= 0.10'))
  common.show(rows, seconds=common.medians(taken), bytes=size)


def digest_seconds(state, folder: pathlib.Path) -> float:
  """The leaves' digests, then those of the save's files, by the functions that a save calls."""
  leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
  began = time.perf_counter()
  checkpoints._each(checkpoints._leaf, leaves)
  checkpoints.file_digests(folder)
  return time.perf_counter() - began


if __name__ == '__main__':
  main()
