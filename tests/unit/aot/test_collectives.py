"""Bytes of collectives: of a program whose collectives are known, and of what only the TPU's compiler writes."""

import textwrap

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from viavsp_jax.aot import collectives, hlo

N = 1024


def program(x):
    """On a quarter of float32[4, 8, N]: each kind once, the sum in a loop of 5 within a loop that data ends."""

    def body(carry):
        count, x = carry
        x = jax.lax.scan(lambda x, _: (jax.lax.psum(jnp.sin(x), "rows") * 0.1, None), x, length=5)[0]
        return count + 1, x

    def running(carry):
        count, x = carry
        return (count < 100) & (x[0, 0, 0] < 1)

    whole = jax.lax.all_gather(jnp.cos(x), "rows")
    x = x + jax.lax.psum_scatter(whole, "rows", scatter_dimension=0)
    x = jax.lax.ppermute(jnp.sin(x), "rows", [(i, (i + 1) % 4) for i in range(4)])
    x = jax.lax.all_to_all(jnp.sin(x), "rows", split_axis=1, concat_axis=1, tiled=True)
    return jax.lax.while_loop(running, body, (0, x))[1]


def test_a_known_program(slice_of_four):
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(AxisType.Auto,), devices=slice_of_four.devices)
    rows = PartitionSpec("rows")
    f = jax.jit(jax.shard_map(program, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False))
    x = jax.ShapeDtypeStruct((4, 8, N), jnp.float32, sharding=NamedSharding(mesh, rows))
    part = 8 * N * 4
    assert collectives.bytes_by_kind(hlo.parse(f.lower(x).compile().as_text()), steps=7) == {
        "all-gather": 4 * part,
        "reduce-scatter": 4 * part,
        "collective-permute": part,
        "all-to-all": part,
        "all-reduce": 7 * 5 * part,
    }


def count(text: str, steps: int = 1) -> dict[str, int]:
    return collectives.bytes_by_kind(hlo.parse(textwrap.dedent(text)), steps)


def test_a_gather_spread_over_other_work_counts_once():
    text = """\
    %begin (a: bf16[2,64]) -> bf16[16,64] {
      %a = bf16[2,64]{1,0:T(8,128)(2,1)} parameter(0)
      ROOT %g.1 = bf16[16,64]{1,0:T(8,128)(2,1)S(1)} all-gather(%a), channel_id=3, frontend_attributes={chain_id="2"}
    }

    %middle (b: bf16[2,64]) -> bf16[16,64] {
      %b = bf16[2,64]{1,0} parameter(0)
      ROOT %g.2 = bf16[16,64]{1,0} all-gather(%b), channel_id=3, frontend_attributes={chain_id="2"}
    }

    ENTRY %main (x: bf16[2,64]) -> bf16[16,64] {
      %x = bf16[2,64]{1,0} parameter(0)
      %start = bf16[16,64]{1,0} fusion(%x), kind=kCustom, calls=%begin
      %go-on = bf16[16,64]{1,0} fusion(%x), kind=kOutput, calls=%middle
      ROOT %other = bf16[16,64]{1,0} all-gather(%x), channel_id=4, dimensions={0}
    }
    """
    assert count(text) == {"all-gather": 2 * 16 * 64 * 2}


def test_a_scatter_written_as_a_sum_and_a_slice():
    text = """\
    %all-reduce-scatter.7 (a: f32[8,128]) -> f32[1,128] {
      %a = f32[8,128]{1,0} parameter(0)
      %sum = f32[8,128]{1,0} all-reduce(%a), channel_id=1, to_apply=%add
      ROOT %part = f32[1,128]{1,0} slice(%sum), slice={[0:1], [0:128]}
    }

    ENTRY %main (x: f32[8,128]) -> f32[1,128] {
      %x = f32[8,128]{1,0} parameter(0)
      ROOT %f = f32[1,128]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.7
    }
    """
    assert count(text) == {"reduce-scatter": 8 * 128 * 4}


def test_what_is_started_and_done_counts_once():
    text = """\
    %work (a: s8[32]) -> s8[64] {
      %a = s8[32]{0} parameter(0)
      ROOT %g = s8[64]{0} all-gather(%a), channel_id=9, dimensions={0}
    }

    %again (c: (s32[], s8[32])) -> (s32[], s8[32]) {
      %c = (s32[], s8[32]{0}) parameter(0)
      %y = s8[32]{0} get-tuple-element(%c), index=1
      %p = (s8[32]{0}, s8[32]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%y), channel_id=1
      %q = s8[32]{0} collective-permute-done(%p)
      %i = s32[]{:T(128)} get-tuple-element(%c), index=0
      ROOT %t = (s32[], s8[32]{0}) tuple(%i, %q)
    }

    %less (d: (s32[], s8[32])) -> pred[] {
      %d = (s32[], s8[32]{0}) parameter(0)
      %n = s32[]{:T(128)} constant(6)
      %j = s32[]{:T(128)} get-tuple-element(%d), index=0
      ROOT %lt = pred[]{:T(512)} compare(%j, %n), direction=LT
    }

    ENTRY %main (x: (s32[], s8[32])) -> (s32[], s8[32]) {
      %x = (s32[], s8[32]{0}) parameter(0)
      %z = s8[32]{0} get-tuple-element(%x), index=1
      %s = ((s8[32]{0}), s8[64]{0}, u32[]) async-start(%z), calls=%work
      %u = ((s8[32]{0}), s8[64]{0}, u32[]) async-update(%s), calls=%work
      %e = s8[64]{0} async-done(%u), calls=%work
      %after = token[] after-all()
      %away = (s8[32]{0}, u32[], token[]) send(%z, %after), channel_id=2, is_host_transfer=true
      ROOT %w = (s32[], s8[32]{0}) while(%x), condition=%less, body=%again
    }
    """
    assert count(text) == {"all-gather": 64, "send": 32, "collective-permute": 6 * 32}
    # A loop whose end is no constant: as often as said.
    assert count(text.replace("direction=LT", "direction=NE"), 2)["collective-permute"] == 2 * 32
