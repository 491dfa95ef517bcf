"""Benchmarks: the cost of an op, an orthogonalisation and a whole step, beside other packages and the floor."""
