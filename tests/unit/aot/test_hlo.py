"""Texts of compiled programs: one written by hand, and what the TPU's compiler writes of functions that are known."""

import inspect
import textwrap

import jax
import jax.numpy as jnp

from viavsp_jax.aot import hlo

# Instructions whose attributes have lines of their own, and shapes of each kind.
TEXT = textwrap.dedent("""\
    HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8,128]{1,0:T(8,128)})->f32[8,128]{1,0:T(8,128)}}

    FileNames
    1 "/a/viavsp_jax/models/llama.py"
    2 "/a/odd \\"name\\".py"

    FunctionNames
    1 "step"
    2 "Llama.logits"

    FileLocations
    1 {file_name_id=1 function_name_id=2 line=120 end_line=120 column=11 end_column=51}
    2 {file_name_id=2 function_name_id=1 line=7 end_line=9 column=1 end_column=2}

    StackFrames
    1 {file_location_id=2 parent_frame_id=1}
    2 {file_location_id=1 parent_frame_id=2}

    %double (a: f32[8,128]) -> f32[8,128] {
      %a = f32[8,128]{1,0:T(8,128)} parameter(0)
      ROOT %sum.1 = f32[8,128]{1,0:T(8,128)S(1)} add(%a, %a), metadata={op_name="jit(f)/add" stack_frame_id=2}
    }

    ENTRY %main.3 (x: f32[8,128]) -> f32[8,128] {
      %x = f32[8,128]{1,0:T(8,128)} parameter(0), sharding={replicated}
      %copy-start = (bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, bf16[8,128]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%x)
      %many = (s32[]{:T(128)}, /*index=1*/pred[5]{0:T(512)}, s4[6,3]{1,0}, f8e4m3fn[2,2]{1,0}) custom-call(%x, %x),
        custom_call_target="tpu_custom_call", frontend_attributes={words="of
    two lines"}, backend_config={"estimated_cycles":"17"}
      %either = f32[8,128]{1,0:T(8,128)} conditional(%x, %many, %x), branch_computations={%double, %double.2}
      ROOT %fusion.2-b = f32[8,128]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%double, metadata={stack_frame_id=1}
    }
    """)


def test_instructions():
    program = hlo.parse(TEXT)
    assert program.entry == "main.3" and list(program.computations) == ["double", "main.3"]
    main = program.computations["main.3"]
    assert [(one.name, one.opcode) for one in main.values()] == [
        ("x", "parameter"), ("copy-start", "copy-start"), ("many", "custom-call"), ("either", "conditional"),
        ("fusion.2-b", "fusion"),
    ]  # fmt: skip
    assert [one.name for one in main.values() if one.is_root] == ["fusion.2-b"]
    assert main["many"].operands == ["x", "x"]
    assert main["fusion.2-b"].called == ["double"] and main["either"].called == ["double", "double.2"]
    assert main["fusion.2-b"].attribute("kind") == "kLoop" and main["fusion.2-b"].attribute("condition") is None


def test_attributes_over_several_lines():
    many = hlo.parse(TEXT).computations["main.3"]["many"]
    assert many.attribute("custom_call_target") == "tpu_custom_call"
    assert 'words="oftwo lines"' in many.rest and many.rest.endswith('"estimated_cycles":"17"}')


def test_arrays_and_where_they_are():
    main = hlo.parse(TEXT).computations["main.3"]
    assert main["x"].arrays == [(1024, 4096, 0)]
    assert main["copy-start"].arrays == [(1024, 2048, 1), (1024, 2048, 0), (1, 4, 2)]
    assert main["many"].arrays == [(1, 4, 0), (5, 5, 0), (18, 9, 0), (4, 4, 0)]


def test_frames_of_a_text():
    program = hlo.parse(TEXT)
    step = ('/a/odd \\"name\\".py', 7, "step")
    assert program.frames(program.computations["main.3"]["fusion.2-b"]) == [step]
    logits = ("/a/viavsp_jax/models/llama.py", 120, "Llama.logits")
    assert program.frames(program.computations["double"]["sum.1"]) == [logits, step]
    assert program.frames(program.computations["double"]["a"]) == []


def innermost(x):
    return jnp.sin(x)


def between(x):
    x = innermost(x)
    return innermost(x) * 2


class Outermost:
    def call(self, x):
        x = jnp.cos(x)
        return jax.lax.scan(lambda x, _: (between(x), None), x, length=3)[0]


def test_frames_are_those_of_the_functions(compiled_text):
    """The numbers of parents in the compiler's table are one too high: read as they are, they name other lines."""
    program = hlo.parse(compiled_text(Outermost().call, ((8, 128), "float32")))

    def line(function, text: str) -> int:
        lines, first = inspect.getsourcelines(function)
        (found,) = [first + i for i, content in enumerate(lines) if text in content]
        return found

    def places(opcode: str) -> set[tuple[tuple[str, int], ...]]:
        """Of each such instruction, the functions of this file above this one and their lines, innermost first."""
        return {
            tuple((frame.function, frame.line) for frame in program.frames(one) if frame.file == __file__)[:-1]
            for computation in program.computations.values()
            for one in computation.values()
            if one.opcode == opcode and program.frames(one)
        }

    scan = ("Outermost.call", line(Outermost.call, "lax.scan"))
    calls = [(f"{Outermost.call.__qualname__}.<locals>.<lambda>", scan[1]), scan]
    sine = ("innermost", line(innermost, "sin"))
    found = {tuple(dict.fromkeys(place)) for place in places("sine")}  # the line of a scan is there several times
    assert found == {(sine, ("between", line(between, text)), *calls) for text in ("x = innermost", "return innermost")}
    assert places("cosine") == {(("Outermost.call", line(Outermost.call, "cos")),)}


def test_trips(compiled_text):
    """A scan, a loop within a loop, and one that data ends."""

    def f(x, limit):
        x = jax.lax.scan(lambda x, _: (jnp.sin(x) @ x, None), x, length=7)[0]
        x = jax.lax.fori_loop(2, 8, lambda _, x: jax.lax.fori_loop(0, 5, lambda _, x: jnp.cos(x) @ x, x) + 1, x)
        return jax.lax.while_loop(lambda x: x[0, 0] < limit, lambda x: jnp.tan(x) @ x, x)

    program = hlo.parse(compiled_text(f, ((256, 256), "float32"), ((), "float32")))
    loops = [one for body in program.computations.values() for one in body.values() if one.opcode == "while"]
    assert sorted(program.trips(loop, steps=99) for loop in loops) == [5, 6, 7, 99]


def test_trips_that_the_compiler_knows():
    text = """\
    %less (c: (s32[])) -> pred[] {
      %c = (s32[]) parameter(0)
      %i = s32[] get-tuple-element(%c), index=0
      %n = s32[] constant(12)
      ROOT %lt = pred[] compare(%i, %n), direction=LT
    }

    ENTRY %main (x: (s32[])) -> (s32[]) {
      %x = (s32[]) parameter(0)
      %w = (s32[]) while(%x), condition=%less, body=%b, backend_config={"known_trip_count":{"n":"4"},"k":["2"]}
      ROOT %v = (s32[]) while(%w), condition=%less, body=%b
    }
    """
    program = hlo.parse(textwrap.dedent(text))
    main = program.computations["main"]
    assert program.trips(main["w"], steps=99) == 4
    assert program.trips(main["v"], steps=99) == 12
    other = hlo.parse(textwrap.dedent(text).replace("direction=LT", "direction=GT"))
    assert other.trips(main["v"], steps=99) == 99
