"""Run by test_evaluate.py on 8 CPU devices: decodes on meshes, and looks at what devices send each other and copy.

    python tests/helpers/decode_mesh_run.py LLM SHARDS

Prints the rows of `decode_folder` on each mesh as JSON.
"""

import functools
import json
import re
import sys

import jax
from small_run import small_config

from viavsp_jax import evaluate, sharding
from viavsp_jax.data import pipeline
from viavsp_jax.decoding.decoder import Decoder, fill_up
from viavsp_jax.experiment import load_experiment
from viavsp_jax.runtime.errors import InputError

ROWS = 8
MESHES = ({"data": 8, "fsdp": 1, "tensor": 1}, {"data": 2, "fsdp": 2, "tensor": 2})
RESULT = re.compile(r"= \(?(\w+\[[\d,]*\])\S* (\S+?)(?:-start)?\(")
COLLECTIVES = {"all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter", "ragged-all-to-all"}


def check_search(decoder: Decoder, weights, batch) -> None:
    """Rows do not meet: all that devices send are numbers that end the loop. The cache is changed where it lies."""
    state, cache = decoder.largest(*weights, batch)
    program = decoder.search.lower(*weights, state, cache).compile()
    found = RESULT.findall(program.as_text())
    sent = [(shape, kind) for shape, kind in found if kind in COLLECTIVES]
    assert sent and all(kind == "all-reduce" and shape.endswith("[]") for shape, kind in sent), sent
    layers, _, *rest = cache.k.shape
    whole = f"f32[{layers},{ROWS // 8},{','.join(map(str, rest))}]"
    assert (whole, "dynamic-update-slice") in found or (whole, "fusion") in found
    assert (whole, "copy") not in found


def main(llm: str, shards: str) -> None:
    assert jax.device_count() == 8
    tables = []
    for mesh in MESHES:
        config = small_config(llm, shards)
        config.evaluate.rows = ROWS
        config.mesh = mesh
        experiment = load_experiment(config)
        c, data = experiment.settings.evaluation, experiment.settings.data
        decoder = Decoder(experiment.mesh, experiment.structure, c.decoding, experiment.prompt.end_ids)
        weights = (experiment.init_trainable(), experiment.load_frozen())
        tables.append(evaluate.decode_folder(experiment, functools.partial(decoder, *weights), "av_clean"))
        if mesh["data"] == 8:
            clips = pipeline.evaluation_records(data, "av_clean", c.split)
            records, batch = next(pipeline.decoding_batches(data, experiment.prompt, clips, c.rows, c.bucket))
            batch = sharding.put_whole_batch(experiment.mesh, fill_up(batch, records))
            check_search(decoder, weights, batch)
            config.evaluate.rows = 6
            try:
                evaluate.evaluate(config, "/nowhere")
            except InputError as error:
                assert "config.evaluate.rows is 6, expected a multiple of 8" in str(error)
            else:
                raise AssertionError("8 devices cannot share 6 rows")
    print(json.dumps(tables))


if __name__ == "__main__":
    main(*sys.argv[1:])
