"""The kernel distance between two sets of features; with Inception's features it is called KID."""

import numpy as np


def distance(
  a: np.ndarray, b: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
  """Returns (mean, standard deviation) of the squared MMD between features a [n, d] and b [m, d].

  MMD is the maximum mean discrepancy. The squared MMD is estimated `subsets` times, each time on
  `size` random rows of `a` and `size` random rows of `b`, drawn without replacement. With the
  kernel k(x, y) = (x.y / d + 1)^3 the unbiased estimate is
  mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean k(a_i, b_j).
  An unbiased estimate of the squared MMD may be negative. The default arguments and the order
  in which random numbers are drawn are those of torch-fidelity. Source of the kernel distance:
  arXiv 1801.01401.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
    raise ValueError(
      f'{a.shape=} and {b.shape=} must be [n, d] and [m, d]; give features of one network'
    )
  if not 2 <= size <= min(len(a), len(b)):
    raise ValueError(
      f'{size=} must be from 2 to the number of pictures in the smaller set, '
      f'{min(len(a), len(b))}; choose a size in this range'
    )
  if subsets < 1:
    raise ValueError(f'{subsets=} must be at least 1')
  rng = np.random.RandomState(seed)
  found = [
    _squared_mmd(*(f[rng.choice(len(f), size, replace=False)] for f in (a, b)))
    for _ in range(subsets)
  ]
  return float(np.mean(found)), float(np.std(found))


def _squared_mmd(a: np.ndarray, b: np.ndarray) -> float:
  n = len(a)
  within = sum(k.sum() - np.trace(k) for k in (_kernel(a, a), _kernel(b, b)))
  return within / (n * (n - 1)) - 2.0 * _kernel(a, b).mean()


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  k = a @ b.T / a.shape[1] + 1.0
  return k * k * k  # numpy's k**3 takes five times as long
