"""Runs the benchmarks and writes their table into benchmarks/README.md.

  python benchmarks/run.py [P1 P4 ...] [--smoke]

Without names the script runs all benchmarks, one after another, each in its own process. The
output of each is kept in benchmarks/results.json under the name of its script: a later run of some
benchmarks replaces only their results.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import time

import common

HERE = pathlib.Path(__file__).resolve().parent
SCRIPTS = {
  'step': ('P1', 'P2'),
  'ancestor': ('P3',),
  'torch_step': ('P4',),
  'sampling': ('P5',),
  'diffusers_sampling': ('P6',),
  'loop': ('P7',),
  'checkpoint': ('P8',),
  'first_update': ('P9',),
  'collectives': ('P10',),
  'flops': ('P11',),
  'memory': ('P12',),
  'compiles': ('P13',),
  'reuse': ('P14',),
  'features': ('P15',),
  'startup': ('P16',),
  'frechet': ('P17',),
  'cell': ('P18',),
  'text_to_image': ('P19',),
  'watching': ('P20',),
}
BEGIN, END = '<!-- measured: written by run.py -->', '<!-- end -->'


def main() -> None:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  p.add_argument('which', nargs='*', metavar='P1', help='benchmarks to run; default: all')
  p.add_argument(
    '--smoke', action='store_true', help='tiny sizes: shows only that the benchmarks run'
  )
  args = p.parse_args()
  known = {which: name for name, ids in SCRIPTS.items() for which in ids}
  unknown = sorted(set(args.which) - set(known))
  if unknown:
    p.error(f'{unknown[0]} is none of {", ".join(known)}')
  names = list(dict.fromkeys(known[which] for which in args.which or known))
  file, failed = HERE / 'results.json', []
  results = json.loads(file.read_text(encoding='utf-8')) if file.exists() else {}
  for name in names:
    began = time.monotonic()
    command = [sys.executable, str(HERE / f'{name}.py'), *(['--smoke'] if args.smoke else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    took = time.monotonic() - began
    print(f'{name}: {took:.0f} s, exit code {done.returncode}', file=sys.stderr, flush=True)
    if done.returncode:
      failed.append(name)
      continue
    results[name] = {**json.loads(done.stdout), 'took': round(took, 1)}
    if not args.smoke:
      file.write_text(json.dumps(results, indent=2) + '\n', encoding='utf-8')
      write(HERE / 'README.md', results)
  if failed:
    sys.exit(f'failed: {", ".join(failed)}')


def write(readme: pathlib.Path, results: dict) -> None:
  """Replaces the table in the README, and the description of the machine above the table."""
  text = readme.read_text(encoding='utf-8')
  before, rest = text.split(BEGIN)
  readme.write_text(
    f'{before}{BEGIN}\n{described(results)}\n{END}{rest.split(END)[1]}', encoding='utf-8'
  )


def described(results: dict) -> str:
  """Returns the machines, then the table in the order of the ids."""
  found = [results[name] for name in SCRIPTS if name in results]
  rows = sorted((r for one in found for r in one['rows']), key=lambda r: _number(r['id']))
  machines = {}
  for one in found:
    m = one['machine']
    words = f'{m["cores"]} cores of {m["cpu"]}, Python {m["python"]}, JAX {m["jax"]}'
    machines.setdefault(words, set()).update(r['id'] for r in one['rows'])
  lines = [f'{words}: {", ".join(sorted(ids, key=_number))}.' for words, ids in machines.items()]
  loads = [one['machine']['load_before'] for one in found]
  loads = [load for load in loads if load is not None]
  if loads:
    lines.append(
      f'Load average as each began: {min(loads):g} to {max(loads):g} (0 to 1 is a quiet machine: '
      'the benchmark before it still counts).'
    )
  return '\n\n'.join([*lines, common.table(rows)])


def _number(which: str) -> int:
  return int(re.sub(r'\D', '', which))


if __name__ == '__main__':
  main()
