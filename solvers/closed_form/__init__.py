"""Squared loss under a frozen kernel, in closed form: flows, regressions, posteriors, ensembles."""
