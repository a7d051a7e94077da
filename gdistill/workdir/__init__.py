"""What a run keeps in its workdir, on local disk or in an object store.

`storage` reads and writes files atomically. `checkpoints` saves and restores one verified tree of
arrays, whose leaves are described and compared in `leaves`; `step_checkpoints` keeps the numbered
checkpoints of a round in training, and `finished` a finished round. `state` is the training state
that checkpoints hold. `ledger` holds the lock of the one process that may write, and the list of
events. This room may use devices and errors.
"""
