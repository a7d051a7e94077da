"""The files of a run's workdir, on local disk or in an object store.

`storage` reads and writes files atomically. `checkpoints` saves and restores one verified tree of
arrays; `leaves` describes and compares the leaves of a tree. `step_checkpoints` saves the numbered
checkpoints of a round in training, and `finished` saves a finished round. `state` is the training
state that checkpoints hold. `ledger` has the lock that lets only one process write, and the list of
events. The package may import, of gdistill, only devices and errors.
"""
