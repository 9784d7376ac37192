"""Stands for viavsp_jax/data/units.py, of which exports get a copy under this name."""

from viavsp_jax.data.units import FILE, Units

__all__ = ["FILE", "Units"]
