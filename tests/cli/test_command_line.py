"""Tests of the flags that all commands have."""

from gdistill.cli import command_line
from gdistill.cli import sample


def test_the_home_of_a_flag_is_ones_own(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  args = command_line.parse(sample.parser(), ['--folder=~/run', '--out=~', '--labels=a~/b'])
  assert (args.folder, args.out, args.labels) == ('/home/me/run', '/home/me', 'a~/b')
