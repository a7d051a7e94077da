"""gdistill prepare: writes a folder, archive or TensorFlow data set as records of one size."""

import contextlib
import os
import sys
import time
from collections.abc import Sequence

from gdistill.cli import command_line
from gdistill.cli import exit_codes


def parser() -> command_line.Parser:
  p = command_line.Parser(
    prog='gdistill prepare',
    description='Crops every picture to its centre square, resizes the square by area and writes '
    'records, which a config with data.name=records reads. If the command is stopped or killed, '
    'repeat it: it resumes and ends with the same bytes. The class names are the names of the '
    'class folders, or those of the TensorFlow data set.',
  )
  p.add_argument(
    '--source', required=True,
    help='folder or archive of <split>/<class>/<picture>, or tfds:NAME for a TensorFlow data set '
    'that is prepared on this machine',
  )  # fmt: skip
  p.add_argument(
    '--out',
    required=True,
    help='folder for the records: new, empty, or begun by the same command, which then resumes',
  )
  p.add_argument(
    '--size', type=int, default=64, help='side of the square records in pixels (default 64)'
  )
  p.add_argument(
    '--channels', type=int, default=3, help='colour channels: 3 for colour, 1 for grey (default 3)'
  )
  p.add_argument(
    '--split', default='train',
    help="name of the training split (default train); '' if --source holds only class folders",
  )  # fmt: skip
  p.add_argument(
    '--held_out_split', default='validation',
    help="name of the held-out split (default validation); '' if there is none",
  )  # fmt: skip
  p.add_argument(
    '--data_dir',
    default='',
    help='folder of the prepared TensorFlow data sets (default: that of TensorFlow Datasets)',
  )
  p.add_argument('--workers', type=int, help='number of worker processes (default: one per core)')
  p.add_argument('--shard_size', type=int, default=4096, help='pictures in a shard (default 4096)')
  p.add_argument(
    '--skip_corrupt', action='store_true', help='leave out pictures that cannot be read'
  )
  p.add_argument(
    '--allow_incomplete', action='store_true',
    help='prepare ImageNet even if pictures of its training set are missing',
  )  # fmt: skip
  return p


def main(argv: Sequence[str]) -> int:
  args = command_line.parse(parser(), argv)
  return exit_codes.call(lambda: _run(args), args.debug)


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
  lock = ledger.Lock(settings.out, name=f'--out={settings.out}')
  began = time.monotonic()
  try:
    with interrupt.Interrupt(lock.check) as stop, lock:
      try:
        job = prepare.plan(settings, stop.check)
        for line in prepare.notes(job):
          progress.say(line)
        if job.earlier:
          progress.say(
            f'{settings.out} was begun by an earlier version of gdistill: its pictures are still '
            'recognised by name and length alone, so that its digest stays the same'
          )
        with progress.Progress('preparing', job.total, job.done) as bar:
          indices = prepare.work(
            job, stop.check, lambda done, speed: bar.update(done, pictures_a_second=speed)
          )
      finally:
        prepare.clean(settings)
  finally:
    if new:
      with contextlib.suppress(OSError):
        # The lock created the folder, so an empty folder is removed; os.rmdir fails if the folder
        # has files.
        os.rmdir(settings.out)
  _report(settings, indices)
  seconds, made = time.monotonic() - began, job.total - job.done
  if made:
    speed = f'{made / seconds:.0f} pictures per second'
    print(f'{made:,} pictures prepared in {seconds:.1f} s, {speed}', file=sys.stderr)
  else:
    print('nothing to do: every shard is complete', file=sys.stderr)
  return 0


def _report(settings, indices) -> None:
  """Prints the numbers of pictures of each split."""
  for split, index in indices.items():
    skipped = len(index['made']['skipped'])
    print(
      f'{os.path.join(settings.out, split)}: {index["count"]:,} pictures of {settings.size} x '
      f'{settings.size}, {len(index["class_names"]):,} classes, '
      f'{skipped:,} unreadable pictures skipped, '
      f'digest {index["digest"]}'
    )
    if small := index['made'].get('small'):
      print(
        f'{len(small):,} pictures below a quarter of {settings.size} pixels a side were passed '
        f'over, such as {small[0]}',
        file=sys.stderr,
      )
