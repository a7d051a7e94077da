"""The training objectives of the paper, one module each: teacher, guidance, progressive, encoder.

Each objective is a pure function `loss(student, teacher, batch, key, **settings) -> [B]`, which the
training loop differentiates. Module `draw` makes the random inputs of all objectives, such as w.
The package may import, of gdistill, only core.
"""
