"""The devices that a run computes on, in one process or several.

`mesh` arranges the devices in a mesh, `sharding` places batches, parameters and optimiser state on
the mesh, and `processes` connects the processes of a run and lets them agree and wait. This room
may use jax and errors.
"""
