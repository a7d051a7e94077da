"""P17: our Fréchet distance against scipy's sqrtm, between Gaussians of known distance.

Samples x of covariance S and T x + shift, with a symmetric positive T, have exactly the distance
tr((I - T) S (I - T)) + |shift of the mean|^2, whether S has full rank or not.
"""

import common
import numpy as np
import scipy.linalg

from gdistill.evaluation.figures import statistics


def main() -> None:
  args = common.parser(__doc__).parse_args()
  common.settle(args, devices=1)
  sizes = (8, 32) if args.smoke else (8, 64, 512, 2048)
  errors, calls = {}, {'eigenvalues': _ours, 'sqrtm': _theirs}
  for d in sizes:
    for share, words in ((0.5, 'half as many'), (4, 'four times as many')):
      a, b, distance = _pair(d, max(3, int(share * d)))
      for name, call in calls.items():
        errors.setdefault((name, words), []).append(abs(call(a, b) / distance - 1))
  rows = [
    common.row(
      'P17',
      f'error of {name} at most, {sizes[0]} to {sizes[-1]} features, {words} samples',
      [max(found)],
    )
    for (name, words), found in errors.items()
  ]
  largest = {name: lambda call=call: call(a, b) for name, call in calls.items()}
  taken = common.interleaved(largest, min(args.repeats, 3), 0)
  ratio = common.ratios(taken['eigenvalues'], taken['sqrtm'])
  rows.append(common.row('P17', f'time over sqrtm, {sizes[-1]} features', ratio))
  common.show(rows, seconds=common.medians(taken))


def _pair(d: int, n: int) -> tuple[statistics.Moments, statistics.Moments, float]:
  rng = np.random.default_rng(d)
  x = rng.normal(size=(n, d)) * rng.uniform(0.1, 2, d) + rng.normal(size=d)
  low = rng.normal(size=(d, 8)) / np.sqrt(d)
  moved = x @ (low @ low.T - 0.3 * np.eye(d)) + 0.1 * rng.normal(size=d)
  distance = np.sum(moved.mean(0) ** 2) + moved.var(0, ddof=1).sum()
  return statistics.Moments.of(x), statistics.Moments.of(x + moved), distance


def _ours(a: statistics.Moments, b: statistics.Moments) -> float:
  # New objects, because Moments keeps its matrix root once computed.
  a, b = (statistics.Moments(m.count, m.mean, m.scatter) for m in (a, b))
  return statistics.frechet_distance(a, b)


def _theirs(a: statistics.Moments, b: statistics.Moments) -> float:
  """Returns the distance as pytorch-fid computes it, without its offset for non-finite results."""
  gap = a.mean - b.mean
  root = scipy.linalg.sqrtm(a.cov @ b.cov)
  return float(gap @ gap + np.trace(a.cov) + np.trace(b.cov) - 2 * np.trace(root).real)


if __name__ == '__main__':
  main()
