"""The gate of a feed-forward layer, whose gradient is computed once.

Letters: B rows, S positions, F feed-forward width.
"""

import functools
from typing import Literal

import jax

Activation = Literal["silu", "gelu_tanh"]


def _plain(gate: jax.Array, up: jax.Array, activation: Activation) -> jax.Array:
    return (jax.nn.silu(gate) if activation == "silu" else jax.nn.gelu(gate, approximate=True)) * up


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def gated(gate: jax.Array, up: jax.Array, activation: Activation) -> jax.Array:
    """activation(gate) · up, [B, S, F] each."""
    return _plain(gate, up, activation)


def _forward(gate, up, activation):
    return _plain(gate, up, activation), (gate, up)


def _backward(activation, kept, d_out):
    # Two products read each of these. XLA would compute them anew in every tile of either.
    return jax.lax.optimization_barrier(jax.vjp(lambda gate, up: _plain(gate, up, activation), *kept)[1](d_out))


gated.defvjp(_forward, _backward)
