"""Tests of the overrides of a config; tests/configs reads whole configs."""

import pytest

from gdistill import errors
from gdistill.cli import config_file


def test_overrides_read_python_literals_and_strings():
  config = config_file.load(
    'configs/digits.py',
    ['--config.teacher.lr=0.5', '--config.model.multipliers=(1,)', '--config.data.name=other'],
  )
  assert config['teacher']['lr'] == 0.5 and config['model']['multipliers'] == (1,)
  assert config['data']['name'] == 'other'


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-8', 'utf-16'])
def test_a_json_config_may_begin_with_a_byte_order_mark(tmp_path, encoding):
  (tmp_path / 'c.json').write_text('{"data": {"path": "été"}}', encoding)
  assert config_file.load(str(tmp_path / 'c.json'), []) == {'data': {'path': 'été'}}


@pytest.mark.parametrize('text', ['{', '[' * 99999, '\xff'])
def test_a_json_config_that_is_none_is_one_line(tmp_path, text):
  (tmp_path / 'c.json').write_text(text, 'latin-1')
  with pytest.raises(
    errors.ConfigError, match=r'c\.json is not readable JSON: .*; correct the file'
  ):
    config_file.load(str(tmp_path / 'c.json'), [])
