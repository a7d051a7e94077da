"""The devices a run computes on: the mesh, the sharding rule, several processes."""
