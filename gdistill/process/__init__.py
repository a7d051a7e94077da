"""Stops, watches and times one process, and shows the progress of the process.

`interrupt` handles signals, `watchdog` ends a process that makes no progress, `progress` prints to
stderr, and `timing` sums up the seconds that each kind of work takes. This package may import, of
gdistill, only errors and workdir.
"""
