"""gdistill prepare: turns a folder, an archive or a TFDS set into records of one picture size."""

import contextlib
import os
import sys
import time
from collections.abc import Sequence

from gdistill.cli import edge


def parser() -> edge.Parser:
  p = edge.Parser(
    prog='gdistill prepare',
    description='Crops every picture to its centre square, resizes the square by area and writes '
    'records, which a config with data.name=records reads. After a kill or a stop the same command '
    'goes on and ends with the same bytes. The class names are the names of the class folders, or '
    'those of the TensorFlow data set.',
  )
  p.add_argument(
    '--source', required=True,
    help='a folder or an archive of <split>/<class>/<picture>, or tfds:NAME for a TensorFlow data '
    'set that is prepared on this machine',
  )  # fmt: skip
  p.add_argument(
    '--out', required=True, help='an empty or new folder, or one begun by the same command'
  )
  p.add_argument('--size', type=int, default=64, help='pixels a side of the records (default 64)')
  p.add_argument('--channels', type=int, default=3, help='3 for colour, 1 for grey (default 3)')
  p.add_argument(
    '--split', default='train',
    help="the training split (default train); '' if the class folders lie at the top",
  )  # fmt: skip
  p.add_argument(
    '--held_out_split', default='validation',
    help="the held-out split (default validation); '' if there is none",
  )  # fmt: skip
  p.add_argument('--data_dir', default='', help='the folder where TensorFlow Datasets has its sets')
  p.add_argument('--workers', type=int, help='worker processes (default: one a core)')
  p.add_argument('--shard_size', type=int, default=4096, help='pictures a shard (default 4096)')
  p.add_argument(
    '--skip_corrupt', action='store_true', help='leave out pictures that cannot be read'
  )
  p.add_argument(
    '--allow_incomplete', action='store_true',
    help='prepare ImageNet even if pictures of its training set are missing',
  )  # fmt: skip
  return p


def main(argv: Sequence[str]) -> int:
  args = edge.parse(parser(), argv)
  return edge.call(lambda: _run(args), args.debug)


def _run(args) -> int:
  from gdistill.data import prepare
  from gdistill.data import prepare_settings
  from gdistill.process import interrupt
  from gdistill.process import progress
  from gdistill.workdir import ledger
  from gdistill.workdir import storage

  flags = {k: v for k, v in vars(args).items() if k != 'debug'}
  if args.workers is None:
    known = hasattr(os, 'sched_getaffinity')
    flags['workers'] = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
  settings = prepare_settings.Settings(**flags)
  storage.check_writable('--out', settings.out)
  prepare_settings.check(settings)
  new = not os.path.exists(settings.out)
  lock = ledger.Lock(settings.out)
  began = time.monotonic()
  try:
    with interrupt.Interrupt(lock.check) as stop, lock:
      try:
        job = prepare.plan(settings, stop.check)
        with progress.Progress('preparing', job.total, job.done) as bar:
          indices = prepare.work(
            job, stop.check, lambda done, speed: bar.update(done, pictures_a_second=speed)
          )
      finally:
        prepare.clean(settings)
  finally:
    if new:
      with contextlib.suppress(OSError):
        os.rmdir(settings.out)  # only an empty folder can be removed: nothing was begun in it
  for split, index in indices.items():
    skipped = len(index['made']['skipped'])
    print(
      f'{os.path.join(settings.out, split)}: {index["count"]:,} pictures of {settings.size} x '
      f'{settings.size}, {len(index["class_names"]):,} classes, {skipped:,} skipped, '
      f'digest {index["digest"]}'
    )
  seconds, made = time.monotonic() - began, job.total - job.done
  if made:
    print(f'{made:,} in {seconds:.1f} s, {made / seconds:.0f} a second', file=sys.stderr)
  else:
    print('nothing to do: every shard is there and whole', file=sys.stderr)
  return 0
