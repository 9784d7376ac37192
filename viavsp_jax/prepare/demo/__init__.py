"""The demo corpus: synthesized Vietnamese speech and a rendered mouth, in the layout of VASR."""
