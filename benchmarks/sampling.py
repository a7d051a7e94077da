"""Guided teacher at many steps against a student at few: is it faster by the ratio of calls?

  python benchmarks/sampling.py --workdir=runs/digits [--teacher_steps=256 --student_steps=4]

Both draw the same batch with the same compiled kind of sampler, in turns; medians over the repeats.
Prints one JSON object.
"""

import argparse
import json
import statistics
import time

import numpy as np

from gdistill import checkpoints
from gdistill import evaluate
from gdistill import model
from gdistill import parallel
from gdistill import sampling
from gdistill import storage
from gdistill.stages import rounds


def main() -> None:
  p = argparse.ArgumentParser()
  p.add_argument('--workdir', required=True)
  p.add_argument('--teacher_steps', type=int, default=256)
  p.add_argument('--student_steps', type=int, default=4)
  p.add_argument('--images', type=int, default=250)
  p.add_argument('--w', type=float, default=1.0)
  p.add_argument('--repeats', type=int, default=7)
  args = p.parse_args()

  workdir = storage.path(args.workdir)
  recipe = evaluate.read_recipe(workdir)
  parallel.make_cpu_devices(recipe.mesh.cpu_devices)
  students = {r.num_steps: r.name for r in rounds.plan(recipe) if r.num_steps}
  if args.student_steps not in students or args.repeats < 1:
    p.error(f'--student_steps must be one of {sorted(students)} and --repeats at least 1')
  student = students[args.student_steps]
  teacher = evaluate.teacher_folder(recipe, workdir)
  seeds, w = np.arange(args.images), np.full(args.images, args.w)
  labels = seeds % recipe.model.num_classes

  runs, calls = {}, {}
  for name, folder, steps in (
    ('teacher', teacher, args.teacher_steps),
    ('student', workdir / student, args.student_steps),
  ):
    kind = sampling.own_sampler(checkpoints.read_card(folder)) if name == 'student' else 'ddim'
    read = model.read_folder(folder)
    runs[name] = (sampling.Sampler(read, kind, args.images), steps)
    calls[name] = steps * (2 if read.guided else 1)
  seconds = {name: [] for name in runs}
  for repeat in range(args.repeats + 1):
    for name, (sampler, steps) in runs.items():
      # As many student batches as make its share long enough to be timed.
      times = 1 if name == 'teacher' else max(1, args.teacher_steps // args.student_steps // 4)
      began = time.perf_counter()
      for _ in range(times):
        sampler(seeds, labels, w, steps)
      if repeat:  # the first round warms up
        seconds[name].append((time.perf_counter() - began) / times / args.images)
  medians = {name: statistics.median(s) for name, s in seconds.items()}
  each = {name: 1e3 * medians[name] / calls[name] for name in runs}
  print(json.dumps({
    'seconds_per_image': medians,
    'spread': {n: (max(s) - min(s)) / medians[n] for n, s in seconds.items()},
    'ms_per_call_and_image': each,
    'ratio': medians['teacher'] / medians['student'],
    'ratio_of_calls': calls['teacher'] / calls['student'],
    'student_over_teacher_per_call': each['student'] / each['teacher'],
    'images_a_batch': args.images,
  }, indent=2))  # fmt: skip


if __name__ == '__main__':
  main()
