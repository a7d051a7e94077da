"""The life of one process: how it is stopped, watched and timed, and how it shows its progress.

`interrupt` handles signals, `watchdog` ends a process that makes no progress, `progress` prints to
stderr, and `timing` sums up seconds by name. This room may use errors and workdir.
"""
