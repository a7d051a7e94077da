"""gdistill evaluate: the grid of a finished run, into its report; resumable, cell by cell."""

from collections.abc import Sequence

from gdistill.cli import edge


def parser() -> edge.Parser:
  p = edge.Parser(
    prog='gdistill evaluate',
    description='Draws the cells that are missing, measures all and rewrites WORKDIR/report. '
    'With --model, --sampler, --num_steps or --w the matching cells are drawn anew.',
  )
  p.add_argument('--workdir', required=True)
  p.add_argument(
    '--grid', choices=('quick', 'full'), default='quick',
    help='how many images a cell and reference steps: evaluation.quick_* or full_* of the config',
  )  # fmt: skip
  p.add_argument('--model', choices=('teacher', 'student'), help='only its cells anew')
  p.add_argument('--sampler', help='only the cells drawn with it anew')
  p.add_argument('--num_steps', type=int, help='only the cells of so many steps anew')
  p.add_argument('--w', type=float, help='only the cells of this w anew')
  return p


def main(argv: Sequence[str]) -> int:
  args = edge.parse(parser(), argv)
  return edge.call(lambda: _run(args), args.debug)


def _run(args) -> int:
  from gdistill import evaluate
  from gdistill import interrupt
  from gdistill import ledger
  from gdistill import parallel
  from gdistill import pipeline
  from gdistill import storage
  from gdistill import train

  recipe = evaluate.read_recipe(storage.path(args.workdir))
  parallel.use_compile_cache()
  parallel.make_cpu_devices(recipe.mesh.cpu_devices)
  names = ('model', 'sampler', 'num_steps', 'w')
  again = {k: getattr(args, k) for k in names if getattr(args, k) is not None}
  seconds = train.Seconds()
  lock = ledger.Lock(args.workdir)
  with interrupt.Interrupt(lock.check) as stop, lock:
    rows = evaluate.run(args.workdir, args.grid, stop, seconds, again)
    pipeline.account(args.workdir, seconds)
    evaluate.write(args.workdir, rows)
  return 0
