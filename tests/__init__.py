"""A package, so that another one of this name, which torch-fidelity installs, is not it."""
