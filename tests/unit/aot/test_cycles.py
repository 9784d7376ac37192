"""Time by the compiler's estimates: of texts written by hand, and of what the TPU's compiler writes."""

import collections
import importlib
import re
import textwrap

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from random_encoders import PRE_LN
from small_run import DEMO_LLAMA

from configs import demo
from viavsp_jax import llm_folder, sharding
from viavsp_jax.aot import cycles, hlo, kernels, workload
from viavsp_jax.aot.topology import CHIPS
from viavsp_jax.experiment import abstract_experiment
from viavsp_jax.models.avhubert.encoder import AVHubert
from viavsp_jax.run_settings import read_settings

CHIP = CHIPS["v5e"]
CYCLES = 'backend_config={"estimated_cycles":"%d","more":["1"]}'


def estimate(text: str, steps: int = 1, **of_kernels: float) -> cycles.Estimate:
    return cycles.estimate(hlo.parse(textwrap.dedent(text)), CHIP, of_kernels, steps)


def in_cycles(found: cycles.Estimate) -> dict[str, int]:
    return {kind: round(seconds * CHIP.clock) for kind, seconds in found.seconds.items() if seconds}


# Everything in fast memory, so that no time of reading is beside the cycles.
LOOPS = f"""\
    %inner (i: f32[8]) -> f32[8] {{
      %i = f32[8]{{0:S(1)}} parameter(0)
      ROOT %a = f32[8]{{0:S(1)}} add(%i, %i), {CYCLES % 3}
    }}

    %dear (d: f32[8]) -> f32[8] {{
      %d = f32[8]{{0:S(1)}} parameter(0)
      ROOT %b = f32[8]{{0:S(1)}} while(%d), condition=%until, body=%inner, b={{"known_trip_count":{{"n":"5"}}}}
    }}

    %cheap (e: f32[8]) -> f32[8] {{
      %e = f32[8]{{0:S(1)}} parameter(0)
      ROOT %f = f32[8]{{0:S(1)}} negate(%e), {CYCLES % 14}
    }}

    %outer (o: f32[8]) -> f32[8] {{
      %o = f32[8]{{0:S(1)}} parameter(0)
      %p = f32[8]{{0:S(1)}} multiply(%o, %o), {CYCLES % 100}
      ROOT %q = f32[8]{{0:S(1)}} conditional(%p, %p, %p), branch_computations={{%cheap, %dear}}
    }}

    %until (u: f32[8]) -> pred[] {{
      %u = f32[8]{{0:S(1)}} parameter(0)
      ROOT %v = pred[] custom-call(%u)
    }}

    ENTRY %main (x: f32[8]) -> f32[8] {{
      %x = f32[8]{{0:S(1)}} parameter(0)
      %y = f32[8]{{0:S(1)}} call(%x), to_apply=%cheap
      ROOT %w = f32[8]{{0:S(1)}} while(%y), condition=%until, body=%outer
    }}
    """


@pytest.mark.parametrize("steps", [1, 7])
def test_loops_calls_and_the_dearest_branch(steps):
    found = estimate(LOOPS, steps)
    assert in_cycles(found) == {"rest": 14 + steps * (100 + 5 * 3)}
    lines = [(line.name, line.runs, round(line.seconds * CHIP.clock)) for line in found.lines]
    # Dearest first; what the other branch would cost is not among them.
    assert sorted(lines) == [("a", 5 * steps, 15 * steps), ("f", 1, 14), ("p", steps, 100 * steps)]
    assert [line.seconds for line in found.lines] == sorted((line.seconds for line in found.lines), reverse=True)


def test_what_sends_counts_by_bytes():
    text = """\
    ENTRY %main (x: f32[1024]) -> f32[1024] {
      %x = f32[1024]{0:S(1)} parameter(0)
      %sum = f32[1024]{0:S(1)} all-reduce(%x), channel_id=1, to_apply=%add
      %all = f32[4096]{0:S(1)} all-gather(%sum), channel_id=2, dimensions={0}
      %after = token[] after-all()
      ROOT %away = (f32[1024]{0:S(1)}, u32[], token[]) send(%sum, %after), channel_id=3
    }
    """
    sent = (2 * 4096 + 4 * 4096) / CHIP.link_bandwidth
    network = 4096 / CHIP.network_bandwidth
    assert estimate(text).seconds["collectives"] == pytest.approx(sent + network)


def test_kernels_count_by_their_longest_name():
    text = """\
    ENTRY %main (x: f32[8]) -> f32[8] {
      %x = f32[8]{0:S(1)} parameter(0)
      %fwd.1 = f32[8]{0:S(1)} custom-call(%x), custom_call_target="tpu_custom_call"
      %fwd_no = f32[8]{0:S(1)} custom-call(%fwd.1), custom_call_target="tpu_custom_call"
      %call.3 = f32[8]{0:S(1)} custom-call(%fwd_no), custom_call_target="tpu_custom_call", metadata={op_name="f/back"}
      ROOT %sort = f32[8]{0:S(1)} custom-call(%call.3), custom_call_target="TopK"
    }
    """
    found = estimate(text, fwd=1.0, fwd_no=20.0, back=300.0)
    assert {line.name: line.seconds for line in found.lines} == {"fwd.1": 1.0, "fwd_no": 20.0, "call.3": 300.0}


MEMORY = """\
    %slice-of-stack (p: bf16[7,64,64], n: s32[]) -> bf16[64,64] {
      %p = bf16[7,64,64]{2,1,0} parameter(0)
      %n = s32[] parameter(1)
      %one = bf16[1,64,64]{2,1,0} dynamic-slice(%p, %n, %n, %n), dynamic_slice_sizes={1,64,64}
      ROOT %flat = bf16[64,64]{1,0} bitcast(%one)
    }

    %product (x0: bf16[32,64], w0: bf16[7,64,64], n0: s32[]) -> bf16[32,64] {
      %x0 = bf16[32,64]{1,0} parameter(0)
      %w0 = bf16[7,64,64]{2,1,0} parameter(1)
      %n0 = s32[] parameter(2)
      %w1 = bf16[64,64]{1,0} fusion(%w0, %n0), kind=kLoop, calls=%slice-of-stack
      ROOT %y0 = bf16[32,64]{1,0} convolution(%x0, %w1), dim_labels=bf_io->bf
    }

    %into-stack (s: f32[7,32,64], u: f32[32,64], m: s32[]) -> (f32[7,32,64], f32[32,64]) {
      %s = f32[7,32,64]{2,1,0} parameter(0)
      %u = f32[32,64]{1,0} parameter(1)
      %m = s32[] parameter(2)
      %u1 = f32[1,32,64]{2,1,0} bitcast(%u)
      %put = f32[7,32,64]{2,1,0} dynamic-update-slice(%s, %u1, %m, %m, %m)
      ROOT %both = (f32[7,32,64]{2,1,0}, f32[32,64]{1,0}) tuple(%put, %u)
    }

    ENTRY %main (x: bf16[32,64], w: bf16[7,64,64], t: f32[7,32,64], i: s32[]) -> bf16[32,64] {
      %x = bf16[32,64]{1,0} parameter(0)
      %w = bf16[7,64,64]{2,1,0} parameter(1)
      %t = f32[7,32,64]{2,1,0} parameter(2)
      %i = s32[]{:S(6)} parameter(3)
      %fast = bf16[32,64]{1,0:S(1)} copy(%x)
      %y = bf16[32,64]{1,0} fusion(%x, %w, %i), kind=kOutput, calls=%product
      %z = bf16[32,64]{1,0:S(1)} fusion(%fast, %w, %i), kind=kOutput, calls=%product
      %f = f32[32,64]{1,0:S(1)} convert(%z)
      %stacked = (f32[7,32,64]{2,1,0}, f32[32,64]{1,0:S(1)}) fusion(%t, %f, %i), kind=kLoop, calls=%into-stack
      %part = bf16[1,64,64]{2,1,0} dynamic-slice(%w, %i, %i, %i), dynamic_slice_sizes={1,64,64}
      %put2 = bf16[7,64,64]{2,1,0} dynamic-update-slice(%w, %part, %i, %i, %i)
      %there = (bf16[32,64]{1,0:S(1)}, bf16[32,64]{1,0}, u32[]{:S(2)}) copy-start(%x)
      %here = bf16[32,64]{1,0:S(1)} copy-done(%there)
      %within = (bf16[32,64]{1,0}, bf16[32,64]{1,0}, u32[]{:S(2)}) copy-start(%x)
      %kept = (bf16[32,64]{1,0:S(1)}, bf16[32,64]{1,0:S(3)}, u32[]{:S(2)}) copy-start(%fast)
      %piece = ((bf16[7,64,64]{2,1,0}), bf16[1,64,64]{2,1,0:S(1)}, u32[]{:S(2)}) slice-start(%w), slice={[0:1]}
      %piece-done = bf16[1,64,64]{2,1,0:S(1)} slice-done(%piece)
      ROOT %last = f32[32,64]{1,0} add(%f, %x)
    }
    """
X, W, F = 2 * 32 * 64, 2 * 64 * 64, 4 * 32 * 64  # bytes of x, of one of the stacked matrices and of x in float32


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("x", 0),
        ("fast", X),  # read there, written elsewhere
        ("y", X + W + X),  # of the stack one matrix
        ("z", W),
        ("stacked", F),  # the update alone
        ("part", 2 * W),
        ("put2", 2 * W),
        ("there", X),  # once, where it starts
        ("here", 0),
        ("within", 2 * X),
        ("kept", 0),
        ("piece", W),
        ("piece-done", 0),
        ("last", X + F),
    ],
)
def test_bytes_of_the_large_memory(name, size):
    program = hlo.parse(textwrap.dedent(MEMORY))
    main = program.computations["main"]
    assert cycles.memory_bytes(main[name], main, program) == size


def test_a_stack_in_another_form_counts_by_what_is_taken():
    """Within fused operations nothing is copied: only the slice is ever computed."""
    text = textwrap.dedent(MEMORY).replace("dynamic-slice(%p,", "dynamic-slice(%p1,")
    text = text.replace("  %one =", "  %p1 = bf16[7,64,64]{1,2,0} copy(%p)\n  %one =")
    program = hlo.parse(text)
    assert "p1" in program.computations["slice-of-stack"]
    main = program.computations["main"]
    assert cycles.memory_bytes(main["z"], main, program) == W


def test_a_stack_in_fast_memory_costs_nothing():
    program = hlo.parse(textwrap.dedent(MEMORY).replace("f32[7,32,64]{2,1,0}", "f32[7,32,64]{2,1,0:S(1)}"))
    main = program.computations["main"]
    assert cycles.memory_bytes(main["stacked"], main, program) == 0


@pytest.mark.parametrize(("spent", "waited"), [(10, 90), (150, 0)])
def test_a_loop_takes_the_larger_of_cycles_and_bytes(spent, waited):
    """Weights that are copied in the background take 100 cycles to arrive, each time."""
    elements = 100 * CHIP.hbm_bandwidth / CHIP.clock / 4
    text = f"""\
    %body (w: f32[{elements:.0f}]) -> f32[{elements:.0f}] {{
      %w = f32[{elements:.0f}]{{0}} parameter(0)
      %start = (f32[{elements:.0f}]{{0:S(1)}}, f32[{elements:.0f}]{{0}}, u32[]{{:S(2)}}) copy-start(%w)
      %done = f32[{elements:.0f}]{{0:S(1)}} copy-done(%start)
      ROOT %y = f32[8]{{0:S(1)}} reduce(%done), {CYCLES % spent}
    }}

    ENTRY %main (x: f32[{elements:.0f}]) -> f32[8] {{
      %x = f32[{elements:.0f}]{{0}} parameter(0)
      ROOT %v = f32[8]{{0:S(1)}} while(%x), condition=%c, body=%body, backend_config={{"known_trip_count":{{"n":"9"}}}}
    }}
    """
    found = {kind: seconds * CHIP.clock for kind, seconds in estimate(text).seconds.items() if seconds}
    assert found == pytest.approx({"rest": 9 * spent} | ({"memory": 9 * waited} if waited else {}), abs=0.1 * 9)


def test_a_scan_against_numbers_added_by_hand(compiled_text):
    """7 steps, what each of them takes by the text; weights that stream take at least their bytes' time."""

    def f(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), jnp.sin(x) * 2, weights)[0].sum()

    text = compiled_text(f, ((40, 2560), "bfloat16"), ((7, 2560, 2560), "bfloat16"))
    once = collections.Counter()  # cycles by computation
    for paragraph in re.split(r"\n\n", text):
        if name := re.match(r"(?:ENTRY )?%([\w.-]+) \(", paragraph):
            once[name[1]] = sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', paragraph)))
    (body,) = re.findall(r"body=%([\w.-]+)", text)
    (entry,) = re.findall(r"ENTRY %([\w.-]+)", text)
    assert once[body] > 1000 and once[entry] > 1000
    found = cycles.estimate(hlo.parse(text), CHIP, {}).seconds
    by_cycles = (7 * once[body] + once[entry]) / CHIP.clock
    assert found.total() - found["memory"] == pytest.approx(by_cycles)
    streamed = 7 * 2560 * 2560 * 2 / CHIP.hbm_bandwidth
    assert max(streamed, 7 * once[body] / CHIP.clock) < found.total() < streamed + by_cycles


# Where the time of a real update goes: the demo's, on 4 chips.
@pytest.fixture(scope="module")
def update(slice_of_four) -> tuple[hlo.Program, cycles.Estimate]:
    config = demo.get_config()
    config.ctc.weight = 0.0
    config.llm.path, config.data.rows, config.dtype = str(DEMO_LLAMA), 4, "bfloat16"
    settings = read_settings(config)
    mesh = sharding.make_mesh(settings.mesh, slice_of_four.devices)
    experiment = abstract_experiment(settings, llm_folder.llama_config(DEMO_LLAMA), mesh, settings.dtype, 15)
    (step,), _ = workload.training(experiment)
    program = hlo.parse(step.traced.lower().compile().as_text())
    return program, cycles.estimate(program, CHIP, kernels.seconds(step.traced.jaxpr.jaxpr, CHIP))


def test_everything_has_its_place(update):
    _, found = update
    share = {kind: found.seconds[kind] / found.seconds.total() for kind in cycles.KINDS}
    assert sum(share.values()) == pytest.approx(1)
    # No encoder is trained here; Adam and the projector are the rest.
    assert share["encoder"] == 0 and 0 < share["rest"] < 0.05
    assert all(share[kind] > 0.001 for kind in cycles.KINDS if kind not in ("encoder", "memory", "rest")), share


def test_kinds_of_products(update):
    """Operations of the matrix products on one device, by kind: those of a row of 256 positions, 128 of labels."""
    program, found = update
    operations, by_name = collections.Counter(), {}
    for computation in program.computations.values():
        for one in computation.values():
            by_name[one.name] = one, computation
    for line in found.lines:
        for inner, body in cycles._inside(*by_name[line.name], program):
            if inner.opcode in ("convolution", "dot"):
                operations[line.kind] += line.runs * 2 * cycles._operations(inner, body)
    llama, rank = llm_folder.llama_config(DEMO_LLAMA), 16
    width, heads, kv = llama.hidden_size, llama.num_heads * llama.head_dim, llama.num_kv_heads * llama.head_dim
    layer = width * (2 * heads + 2 * kv) + 3 * width * llama.intermediate_size
    adapters = rank * (3 * width + heads + 2 * kv)
    tokens = 2 * 256 * llama.num_layers
    # Forward and to the input; adapters' weights have gradients too, for which their inner activations are made again.
    assert operations["products"] == pytest.approx(2 * tokens * layer, rel=0.15)
    assert 3 * tokens * adapters <= operations["adapters"] <= 4 * tokens * adapters
    assert operations["head"] == pytest.approx(2 * 2 * 128 * width * llama.vocab_size, rel=0.15)
    assert operations["attention"] > 0 and operations["elementwise"] == 0


def test_sources_of_lines(update):
    """Of each kind, the files of the lines that are its own."""
    _, found = update
    files = collections.defaultdict(set)
    for line in found.lines:
        files[line.kind].add(line.source.split(":")[0])
    assert files["head"] <= {"losses.py", "models/llama.py"} and "losses.py" in files["head"]
    assert files["adapters"] == {"models/lora.py"} and "models/dropout.py" in files["dropout"]
    assert "models/rope.py" in files["elementwise"] and files["attention"] <= {"models/attention.py"}
    report = found.lines[0].report()
    assert report["ms"] == 1e3 * max(line.seconds for line in found.lines) and "{" not in report["result"]


@pytest.mark.parametrize(("file", "function", "kind"), cycles._PLACES)
def test_places_exist(file, function, kind):
    """What is renamed has to be renamed there too, or its time would move to another kind."""
    assert kind in cycles.KINDS
    room = "viavsp_jax" if file == "losses" else "viavsp_jax.models"
    found = importlib.import_module(f"{room}.{file}")
    for name in filter(None, function.split(".")):
        found = getattr(found, name)


def test_an_encoder(compiled_text):
    """All of it is the encoder's."""
    graph, params = nnx.split(nnx.eval_shape(lambda: AVHubert(PRE_LN, dtype=jnp.bfloat16, fold=True, rngs=nnx.Rngs(0))))
    leaves, tree = jax.tree.flatten(params)

    def encode(audio, *leaves):
        model = nnx.merge(graph, tree.unflatten(leaves))
        return model.encode(model.audio_features(audio), None)[1]

    audio = ((2, 8, PRE_LN.audio_dim), "bfloat16")
    text = compiled_text(encode, audio, *((leaf.shape, str(leaf.dtype)) for leaf in leaves))
    seconds = cycles.estimate(hlo.parse(text), CHIP, {}).seconds
    assert seconds["encoder"] > 0.3 * seconds.total()
    assert {kind for kind, spent in seconds.items() if spent} <= {"encoder", "copies", "saved", "memory"}
