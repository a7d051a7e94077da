"""Tests of the CLIP score on pairs of embeddings with known angles."""

import numpy as np
import pytest

from gdistill import errors
from gdistill.evaluation.figures import clip_score


def test_it_is_the_mean_cosine_of_the_pairs():
  image = np.array([[1.0, 0], [3, 0], [0, 2]])
  text = np.array([[5.0, 0], [1, 1], [-1, 0]])
  # The angles are 0, 45 and 90 degrees.
  assert clip_score.score(image, text) == pytest.approx((1 + np.sqrt(0.5) + 0) / 3)
  assert clip_score.score(image, text, scale=100) == pytest.approx(100 * (1 + np.sqrt(0.5)) / 3)


def test_lengths_mean_nothing_and_order_does():
  rng = np.random.default_rng(0)
  image, text = rng.normal(size=(2, 9, 4)).astype(np.float32)
  scaled = clip_score.score(7 * image, text / 3)
  assert scaled == pytest.approx(clip_score.score(image, text), rel=1e-6)
  assert clip_score.score(image, text[::-1]) != pytest.approx(clip_score.score(image, text))


@pytest.mark.parametrize(('image', 'text'), [((3, 4), (2, 4)), ((3,), (3,)), ((0, 4), (0, 4))])
def test_what_is_no_list_of_pairs_is_refused(image, text):
  with pytest.raises(ValueError, match='must be equal'):
    clip_score.score(np.ones(image), np.ones(text))


def test_an_embedding_of_zero_has_no_direction():
  with pytest.raises(ValueError, match='cosine is undefined'):
    clip_score.score(np.zeros((2, 3)), np.ones((2, 3)))


def test_a_tokenizer_with_more_tokens_than_clip_has_embeddings_is_refused(tmp_path, monkeypatch):
  import tokenizers

  monkeypatch.setattr(clip_score.extractors, 'load', lambda name, file: None)
  words = {f'w{i}': i for i in range(49408)}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, 'w0'))
  file = str(tmp_path / 'tokenizer.json')
  tokenizer.save(file)
  clip_score.Scorer.load('clip_l14', tokenizer=file)
  tokenizer.add_tokens(['<toy>'])
  tokenizer.save(file)
  with pytest.raises(errors.DataError, match=r"'<toy>', a token with id 49,408, but clip_l14 has"):
    clip_score.Scorer.load('clip_l14', tokenizer=file)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_embeddings_that_are_not_finite_give_no_score(bad):
  with pytest.raises(errors.NumericsError, match='embeddings are not all finite'):
    clip_score.score(np.array([[1.0, bad]]), np.ones((1, 2)))
