"""The CLIP score: mean cosine similarity between the embeddings of pictures and their captions."""

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
  """Returns scale * mean_i cos(image_i, text_i) of the embeddings `image` and `text`, both [n, d].

  The CLIP scores in arXiv 2210.03142 have scale 1; good pictures have a score of about 0.3. The
  library torchmetrics uses scale 100 and replaces negative scores by zero.
  Source of the CLIP score: arXiv 2104.08718, where the scale is 2.5.
  """
  image, text = np.asarray(image, np.float64), np.asarray(text, np.float64)
  if image.ndim != 2 or image.shape != text.shape or not len(image):
    raise ValueError(
      f'{image.shape=} and {text.shape=} must be equal, [n, d]; give one text for each image'
    )
  if not (np.isfinite(image).all() and np.isfinite(text).all()):
    raise errors.NumericsError(
      'embeddings are not all finite: the weights of the CLIP network are damaged; make the weight '
      'file again with gdistill convert'
    )
  norms = np.linalg.norm(image, axis=1) * np.linalg.norm(text, axis=1)
  if not (norms > 0).all():
    raise ValueError(
      'an embedding in image or text is zero, so the cosine is undefined; make the weight file of '
      'the CLIP network again with gdistill convert'
    )
  return float(scale * np.mean(np.sum(image * text, axis=1) / norms))


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer:
  """A CLIP model that embeds pictures and captions: image tower, text tower and tokenizer."""

  image: extractors.Extractor
  tokenizer: object
  tower: clip.Tower
  words: clip.Words = dataclasses.field(default_factory=clip.Words)

  @classmethod
  def load(cls, name: str, file: str = '', tokenizer: str = '') -> Scorer:
    """Returns a published CLIP model with its tokenizer, read from files.

    `name` is 'clip_b32' or 'clip_l14'.
    `file` is the path of the CLIP model's weight file, or '' for the default path.
    `tokenizer` is the path of the model's tokenizer.json, or '' for the default path.
    """
    image = extractors.load(name, file)
    return cls(image, _tokenizer(name, tokenizer), _TOWERS[name])

  def tokens(self, captions: Sequence[str]) -> np.ndarray:
    """Returns the tokens of n captions, int32 [n, length].

    A row holds the start token, the caption (cut if too long), the end token and padding. The
    padding repeats the end token.
    """
    words = self.words
    out = np.full((len(captions), words.length), words.end, np.int32)
    for row, caption in zip(out, captions, strict=True):
      ids = self.tokenizer.encode(caption).ids
      row[: len(ids)] = [*ids[: words.length - 1], words.end] if len(ids) > words.length else ids
    return out

  def texts(self, captions: Sequence[str], batch: int = 32) -> np.ndarray:
    """Returns embeddings [n, d] of captions; the last batch is padded to the size `batch`."""
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
      f'the tokenizer of {name} is not at {file}; download tokenizer.json from '
      f'{weights.SOURCES[name].where} to that place, or give the path of a tokenizer.json as '
      '--tokenizer'
    )
  try:
    import tokenizers
  except ImportError:
    raise errors.ConfigError(
      "--captions needs the Python package tokenizers; run: pip install -e '.[text]'"
    ) from None
  try:
    found = tokenizers.Tokenizer.from_file(file)
  except Exception as e:  # the tokenizers library raises plain Exception
    raise errors.DataError(
      f'--tokenizer={file} is not a readable tokenizer.json ({errors.brief(e)}); download the '
      'file again'
    ) from e
  token, number = max(found.get_vocab().items(), key=lambda item: item[1], default=('', -1))
  if number >= (rows := clip.Words().vocabulary):
    raise errors.DataError(
      f'--tokenizer={file} has {token!r}, a token with id {number:,}, but {name} has only {rows:,} '
      f'token embeddings; give the tokenizer.json of {weights.SOURCES[name].where}'
    )
  return found
