"""Tests of the protocol: figures of different protocols are refused in one table."""

import pytest

from gdistill import errors
from gdistill.evaluation import protocol

ROW = {
  'extractor': 'inception', 'extractor_digest': 'a', 'resize': 'r', 'normalisation': 'n',
  'rounding': 'u', 'images': 50_000, 'labels': 'balanced', 'clipping': 'c', 'reference_set': 's',
  'reference_split': 'train', 'reference_digest': 'd', 'reference_images': 50_000, 'bank': 9,
  'reference_bank': 9, 'reference_size': '8 x 8',
  'sampler': 'ddim', 'num_steps': 4, 'w': 1.0, 'network_calls': 4, 'checkpoint': 'p', 'fd': 3.0,
}  # fmt: skip


@pytest.mark.parametrize('key', protocol.SHARED)
def test_every_shared_key_is_looked_at(key):
  other = {**ROW, key: 'another'}
  with pytest.raises(errors.ConfigError, match=rf'{key}: .* against another'):
    protocol.check([ROW, other])
  assert protocol.digest(ROW) != protocol.digest(other)
  without = {k: v for k, v in ROW.items() if k != key}
  assert set(protocol.differences([ROW, without])) == {key}


@pytest.mark.parametrize('key', protocol.WHERE_KNOWN)
def test_what_is_not_known_agrees_with_anything(key):
  unknown = {k: v for k, v in ROW.items() if k not in protocol.WHERE_KNOWN}
  protocol.check([unknown, {**unknown, key: None}, {**unknown, key: 'one'}])
  with pytest.raises(errors.ConfigError, match=rf'{key}: one against another'):
    protocol.check([{**unknown, key: 'one'}, {**unknown, key: 'another'}])


def test_rows_that_say_nothing_of_themselves_are_refused():
  with pytest.raises(errors.ConfigError, match='extractor: None'):
    protocol.check([{'fd': 2.0}, {'fd': 3.0}])


def test_what_a_table_compares_may_differ():
  axes = ('sampler', 'num_steps', 'w', 'network_calls', 'checkpoint', 'fd')
  others = [{**ROW, key: 'another'} for key in axes]
  protocol.check([ROW, *others])
  assert {protocol.digest(r) for r in others} == {protocol.digest(ROW)}


def test_versions_name_what_figures_depend_on():
  assert {'gdistill', 'jax', 'numpy'} <= set(protocol.versions())
