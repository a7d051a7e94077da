"""P5: is a student of few steps faster than the guided teacher by the ratio of network calls?

  python benchmarks/sampling.py [--workdir=runs/digits --teacher_steps=256 --student_steps=4]

Teacher and student draw the same batch with the same kind of compiled sampler, in turns; figures
are medians over the repeats. Without --workdir the networks are those of configs/digits.py with
random parameters, which take as long.
"""

import common
import numpy as np


def main() -> None:
  p = common.parser(__doc__)
  p.add_argument('--workdir', help='workdir of a finished run; default: random parameters')
  p.add_argument('--teacher_steps', type=int, default=256)
  p.add_argument('--student_steps', type=int, default=4)
  p.add_argument('--images', type=int, default=250)
  p.add_argument('--w', type=float, default=1.0)
  args = common.settle(p.parse_args(), devices=2)
  if args.repeats < 1:
    p.error('--repeats must be at least 1')
  if args.smoke:
    args.images, args.teacher_steps, args.student_steps = 4, 4, 2

  steps = {'teacher': args.teacher_steps, 'student': args.student_steps}
  if args.workdir:
    folders, students = common.finished(args.workdir, args.student_steps)
    if not folders:
      p.error(f'--student_steps must be one of {students}')
  else:
    recipe = common.recipe('tiny' if args.smoke else 'digits')
    folders = {
      name: common.folder(recipe, stage)
      for name, stage in (('teacher', 'teacher'), ('student', 'progressive'))
    }
  seeds, w = np.arange(args.images), np.full(args.images, args.w)
  labels = seeds % folders['teacher'].settings.num_classes

  def drawn(name):
    sampler = common.sampler(folders[name], args.images)
    return lambda: sampler(seeds, labels, w, steps[name])

  # `interleaved` repeats the student's short call until a turn is long enough to be timed.
  taken = common.interleaved({name: drawn(name) for name in steps}, args.repeats, args.seconds)
  taken = {name: [s / args.images for s in seconds] for name, seconds in taken.items()}
  calls = {name: n * common.calls_a_step(folders[name]) for name, n in steps.items()}
  medians = common.medians(taken)
  each = {name: 1e3 * medians[name] / calls[name] for name in steps}
  values, ratio_of_calls = (
    common.ratios(taken['teacher'], taken['student']),
    calls['teacher'] / calls['student'],
  )
  text = (
    f'guided teacher at {steps["teacher"]} steps over student at {steps["student"]}, wall time, '
    f'over the ratio of calls {ratio_of_calls:g}, {args.images} images'
  )
  common.show(
    [common.row('P5', text, [v / ratio_of_calls for v in values], '>= 0.95')],
    seconds_per_image=medians,
    spread={n: (max(s) - min(s)) / medians[n] for n, s in taken.items()},
    ms_per_call_and_image=each,
    ratio=medians['teacher'] / medians['student'],
    ratio_of_calls=ratio_of_calls,
    student_over_teacher_per_call=each['student'] / each['teacher'],
    images_a_batch=args.images,
  )


if __name__ == '__main__':
  main()
