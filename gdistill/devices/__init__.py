"""The devices that a run computes on, in one process or in several processes.

`mesh` arranges the devices in a mesh, `sharding` places batches, parameters and optimiser state on
the mesh, and `processes` connects the processes of a run, compares values between processes and
waits for all processes. The only module of gdistill that `devices` may import is `errors`.
"""
