"""Prints how far a run has come, as one number that only grows: launch/progress.py WORKDIR.

The number counts finished rounds first, then the newest complete checkpoint step of the unfinished
round, then evaluated cells of the grid. Ledger entries do not count: a run that dies at its start
writes ledger entries too.
"""

import pathlib
import re
import sys


def names(folder) -> list[str]:
  try:
    return [p.name for p in folder.iterdir()]
  except (FileNotFoundError, NotADirectoryError):
    return []


def progress(workdir) -> int:
  rounds = [workdir / n for n in names(workdir) if re.fullmatch(r'\d{2,}_[a-z0-9_]+', n)]
  open_rounds = [r for r in rounds if not (r / 'card.json').exists()]
  steps = [
    int(n)
    for r in open_rounds
    for n in names(r / 'steps')
    if n.isdigit() and (r / 'steps' / n / 'manifest.json').exists()
  ]
  cells = [n for n in names(workdir / 'evaluation' / 'cells') if n.endswith('.npz')]
  return (len(rounds) - len(open_rounds)) * 10**12 + max(steps, default=0) * 10**4 + len(cells)


if __name__ == '__main__':
  where = sys.argv[1]
  if '://' in where:
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
    from gdistill.workdir import storage

    print(progress(storage.path(where)))
  else:
    print(progress(pathlib.Path(where)))
