"""The devices that a run computes on, in one process or in several processes.

`mesh` arranges the devices in a mesh, `sharding` places batches, parameters and optimiser state on
the mesh, and `processes` connects the processes of a run, compares values between processes and
waits for all processes. `topology` names chips that are not here, `compiled` compiles a program for
them, and `program` reads what a compiled program does. The only module of gdistill that `devices`
may import is `errors`.
"""
