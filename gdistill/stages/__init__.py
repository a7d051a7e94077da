"""The training objectives of the paper, one module each: teacher, guidance, progressive, encoder.

Each module exports `loss(student, teacher, batch, key, **settings) -> [B]`, a pure function that
the training loop differentiates. `draw` holds the random draws that all objectives share.
May use `core`.
"""
