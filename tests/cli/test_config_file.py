"""Tests of the overrides of a config; tests/configs reads whole configs."""

from gdistill.cli import config_file


def test_overrides_read_python_literals_and_strings():
  config = config_file.load(
    'configs/digits.py',
    ['--config.teacher.lr=0.5', '--config.model.multipliers=(1,)', '--config.data.name=other'],
  )
  assert config['teacher']['lr'] == 0.5 and config['model']['multipliers'] == (1,)
  assert config['data']['name'] == 'other'
