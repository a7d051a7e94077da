"""The CLIP score: how well pictures go with their captions, by the angle of their embeddings."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from gdistill import errors
from gdistill.evaluation.features import extractors
from gdistill.evaluation.features import weights
from gdistill.models import clip

_TOWERS = {'clip_b32': clip.TEXT_B32, 'clip_l14': clip.TEXT_L14}


def score(image: np.ndarray, text: np.ndarray, scale: float = 1.0) -> float:
  """scale times the mean over pairs of cos(image_i, text_i); embeddings are [n, d].

  The paper's tables have scale 1 (about 0.3 for good pictures); torchmetrics has 100 and clips
  below zero. Source: Hessel et al. 2104.08718, whose w = 2.5 is another scale yet.
  """
  image, text = np.asarray(image, np.float64), np.asarray(text, np.float64)
  if image.ndim != 2 or image.shape != text.shape or not len(image):
    raise ValueError(f'{image.shape=} and {text.shape=} must be equal, [n, d] and not empty')
  norms = np.linalg.norm(image, axis=1) * np.linalg.norm(text, axis=1)
  if not (norms > 0).all():
    raise ValueError('an embedding is zero and has no direction')
  return float(scale * np.mean(np.sum(image * text, axis=1) / norms))


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer:
  """Both towers of one CLIP and its tokenizer: pictures and captions to embeddings."""

  image: extractors.Extractor
  tokenizer: object
  tower: clip.Tower
  words: clip.Words = dataclasses.field(default_factory=clip.Words)

  @classmethod
  def load(cls, name: str, file: str = '', tokenizer: str = '') -> Scorer:
    """A published CLIP by its name, and the tokenizer.json that comes with it."""
    image = extractors.load(name, file)
    return cls(image, _tokenizer(name, tokenizer), _TOWERS[name])

  def tokens(self, captions: Sequence[str]) -> np.ndarray:
    """int32 [n, length]: the sentence between start and end, cut to fit, then the end again."""
    words = self.words
    out = np.full((len(captions), words.length), words.end, np.int32)
    for row, caption in zip(out, captions, strict=True):
      ids = self.tokenizer.encode(caption).ids
      row[: len(ids)] = [*ids[: words.length - 1], words.end] if len(ids) > words.length else ids
    return out

  def texts(self, captions: Sequence[str], batch: int = 32) -> np.ndarray:
    """[n, d] embeddings of captions, in padded batches of one shape."""
    tokens, out = self.tokens(captions), []
    for first in range(0, len(tokens), batch):
      rows = tokens[first : first + batch]
      padded = np.pad(rows, [(0, batch - len(rows)), (0, 0)], constant_values=self.words.end)
      out.append(np.asarray(self._embed(self.image.params['text'], padded))[: len(rows)])
    return np.concatenate(out)

  @functools.cached_property
  def _embed(self):
    net = clip.Text(self.tower, self.words)

    def embed(params, tokens):
      with jax.default_matmul_precision('highest'):
        return net.apply({'params': params}, tokens)[1]

    return jax.jit(embed)


def _tokenizer(name: str, file: str) -> object:
  file = file or str(weights.default_path(name).with_suffix('.json'))
  if not pathlib.Path(file).is_file():
    raise errors.DataError(
      f'the tokenizer of {name} is not at {file}; get tokenizer.json from where its weights are '
      f'({weights.SOURCES[name].where}) and put it there, or name it by --tokenizer'
    )
  try:
    import tokenizers
  except ImportError:
    raise errors.ConfigError(
      "captions need the package tokenizers: pip install 'gdistill[text]'"
    ) from None
  try:
    return tokenizers.Tokenizer.from_file(file)
  except Exception as e:  # its own error is a plain Exception
    raise errors.DataError(
      f'--tokenizer={file} is no readable tokenizer.json ({errors.brief(e)})'
    ) from e
