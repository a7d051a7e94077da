"""The inception score: how sure a classifier is of each picture, how even over the classes."""

import numpy as np


def score(logits: np.ndarray, splits: int = 1) -> tuple[float, float]:
  """exp(E_x KL(p(y|x) || p(y))): mean and standard deviation over splits of logits [n, classes].

  Between 1 and the number of classes. Each split is a run of neighbouring rows with its own p(y),
  so pictures should come with their labels mixed. Source: Salimans et al. 1606.03498 (10 splits).
  """
  logits = np.asarray(logits, np.float64)
  if logits.ndim != 2:
    raise ValueError(f'{logits.shape=} must be [n, classes]')
  if not 1 <= splits <= len(logits):
    raise ValueError(f'{splits=} must lie between 1 and the number of images, {len(logits)}')
  scores = [_score(part) for part in np.array_split(logits, splits)]
  return float(np.mean(scores)), float(np.std(scores))


def _score(logits: np.ndarray) -> float:
  log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
  # log of the mean of p, without leaving logarithms: a class nobody shows has p(y) = 0
  log_marginal = np.logaddexp.reduce(log_p, axis=0, keepdims=True) - np.log(len(log_p))
  p = np.exp(log_p)
  kl = np.sum(np.where(p > 0, p * (log_p - log_marginal), 0.0), axis=1)
  return np.exp(kl.mean())
