"""Small real files of every kind that comes from elsewhere, written into an empty folder, the same ones each time."""

import argparse
import fractions
import functools
import io
import json
import pathlib
import pickle
import tarfile
import wave
from collections import OrderedDict

import av
import cv2
import jax.numpy as jnp
import joblib
import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import safetensors.numpy
import safetensors.torch
import torch
from sklearn.cluster import MiniBatchKMeans
from tensorboardX import SummaryWriter

import viavsp_jax
from convert import from_fairseq, from_hf, names
from convert.avhubert_names import to_hugging_face
from viavsp_jax import llm_folder
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.data import records
from viavsp_jax.data.examples import FEATURES, MEDIA
from viavsp_jax.data.features import SAMPLE_RATE
from viavsp_jax.evaluation.report import page
from viavsp_jax.evaluation.report.results import folder_of, read_table
from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.models.lora import LoRAConfig
from viavsp_jax.models.viavsp import ModelConfig
from viavsp_jax.prepare import kmeans
from viavsp_jax.prepare.corpus import vasr
from viavsp_jax.prepare.features.avhubert_torch import AVHubert, save_encoder
from viavsp_jax.prepare.lines import write_lines
from viavsp_jax.prepare.recordings.mouth_video import write_video
from viavsp_jax.state import TrainState, abstract_model

DEMO_LLAMA = pathlib.Path(viavsp_jax.__file__).parent / "demo_models" / "llama"


def write_fairseq(folder: pathlib.Path) -> None:
    """A pre-trained encoder's checkpoint in miniature, and one of the flat settings of old versions."""
    settings = dict.fromkeys(from_fairseq.CONFIG_NAMES.values(), 4) | {"layer_norm_first": True}
    settings |= {"modality_fuse": "concat", "encoder_embed_dim": 8}
    model = OrderedDict((f"encoder.{number}.weight", torch.arange(6.0).view(2, 3) + number) for number in range(3))
    model |= {f"{from_fairseq.RESNET}trunk.layer{stage}.0.conv1.weight": torch.ones(2, 1) for stage in (1, 2, 3, 4)}
    model |= {f"{from_fairseq.RESNET}frontend3D.0.weight": torch.ones(3, 1), "half": torch.ones(3).half()}
    moments = {"step": 2, "exp_avg": torch.zeros(2, 3), "exp_avg_sq": torch.ones(2, 3)}
    places = list(range(len(model)))
    optimizer = {"state": {0: moments, 1: moments}, "param_groups": [{"lr": 0.1, "params": places}]}
    history = [{"num_updates": 3, "optimizer_name": "FairseqAdam"}]
    more = {"optimizer_history": history, "last_optimizer_state": optimizer}
    torch.save({"args": None, "cfg": {"model": settings, "task": {}}, "model": model} | more, folder / "new.pt")
    shared = torch.arange(8.0).bfloat16()
    old = {"args": argparse.Namespace(**settings), "model": {"a": shared[:4], "b": shared[4:].view(2, 2).t()}}
    torch.save(old, folder / "old.pt")


def write_km(folder: pathlib.Path) -> None:
    """K-Means as joblib and as pickles of two protocols write it."""
    model = MiniBatchKMeans(3, n_init=1, random_state=np.random.RandomState(0))
    model.fit(np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32))
    joblib.dump(model, folder / "joblib.km")
    for protocol in (2, 5):
        (folder / f"pickle{protocol}.km").write_bytes(pickle.dumps(model, protocol))


def write_centers(folder: pathlib.Path) -> None:
    """Centres as this project keeps them."""
    kmeans.save_centers(folder / "kmeans.safetensors", np.ones((3, 4), np.float32), {"layer": 2, "seed": 0})


def write_face(folder: pathlib.Path) -> None:
    """A mean face."""
    np.save(folder / "face.npy", np.arange(136.0).reshape(68, 2))


def write_hf(folder: pathlib.Path) -> None:
    """A LLaMA of two layers in two files."""
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = json.loads((DEMO_LLAMA / "config.json").read_text(encoding="utf-8"))
    config |= sizes | {"num_key_value_heads": 1, "head_dim": 4, "vocab_size": 16, "tie_word_embeddings": False}
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    rng, index = np.random.default_rng(0), {}
    wanted = names.tensors(abstract_model(ModelConfig(llm_folder.llama_config(folder), LoRAConfig(), 1, np.float32))[2])
    for number, part in enumerate((wanted[::2], wanted[1::2])):
        file = f"model-{number}.safetensors"
        values = {tensor.name: rng.normal(size=tensor.shape).astype(np.float32) for tensor in part}
        safetensors.numpy.save_file(values, folder / file)
        index |= dict.fromkeys(values, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}), encoding="utf-8")


def write_llm(folder: pathlib.Path) -> None:
    """The language model of `write_hf` as this project keeps it."""
    source = folder.parent / "hf"
    source.mkdir()
    write_hf(source)
    from_hf.convert(source, folder)


def write_tokenizer(folder: pathlib.Path) -> None:
    """A tokenizer of the demo."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((DEMO_LLAMA / name).read_bytes())


def write_encoder(folder: pathlib.Path) -> None:
    """An encoder in miniature."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 8, "num_layers": 1, "num_heads": 2, "ffn_dim": 4, "audio_dim": 4, "frontend_channels": 2}
    save_encoder(AVHubert(AVHubertConfig(**sizes, resnet_channels=(2, 2, 2, 2), conv_pos=4, conv_pos_groups=2)), folder)


def write_hf_encoder(folder: pathlib.Path) -> None:
    """The same in Hugging Face form, as safetensors and as a pickle."""
    write_encoder(folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights = {f"avsr.encoder.{to_hugging_face(name)}": value for name, value in weights.items()}
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "config.json").write_text('{"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}')


def write_wav(folder: pathlib.Path) -> None:
    """25 ms of a tone."""
    with wave.open(str(folder / "speech.wav"), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", None))
        file.writeframes((1000 * np.sin(np.arange(400))).astype("<i2").tobytes())


def pictures(count: int, height: int, width: int) -> np.ndarray:
    """Something that moves: uint8 [count, height, width, 3]."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return np.stack([np.roll(cv2.GaussianBlur(noise, (0, 0), 3), 4 * number, 1) for number in range(count)])


def write_mouth_video(folder: pathlib.Path) -> None:
    """Mouth crops in two codecs."""
    writer = cv2.VideoWriter(str(folder / "mpeg4.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 25, (96, 96))
    for picture in pictures(6, 96, 96):
        writer.write(picture)
    writer.release()
    write_recording(folder / "h264.mp4", "libx264", None, 96)


def write_recording(path: pathlib.Path, video: str | None, audio: str | None, side: int = 64) -> None:
    """Half a second of pictures, sound or both."""
    with av.open(str(path), "w") as container:
        streams = []
        if video:
            streams.append(container.add_stream(video, rate=25, options={"threads": "1"}))
            streams[-1].width, streams[-1].height, streams[-1].pix_fmt = (
                side,
                side,
                f"yuv{'j' * (video == 'mjpeg')}420p",
            )
        if audio:
            streams.append(container.add_stream(audio, rate=16_000, layout="mono"))
        for stream in streams:
            if stream.type == "video":
                for number, picture in enumerate(pictures(12, side, side)):
                    frame = av.VideoFrame.from_ndarray(picture, "bgr24")
                    frame.pts, frame.time_base = number, fractions.Fraction(1, 25)
                    container.mux(stream.encode(frame))
            else:
                tone = (9000 * np.sin(np.arange(8000) / 9)).astype(np.int16)
                frame = av.AudioFrame.from_ndarray(tone[None], "s16", "mono")
                frame.pts, frame.sample_rate, frame.time_base = 0, 16_000, fractions.Fraction(1, 16_000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))


RECORDINGS = {
    "a.mp4": ("libx264", "aac"), "b.mov": ("mpeg4", "pcm_s16le"), "c.mkv": ("libx264", "libopus"),
    "d.avi": ("mjpeg", "libmp3lame"), "e.webm": ("libvpx", "libopus"), "f.ts": ("mpeg2video", "mp2"),
    "g.wav": (None, "pcm_s16le"), "h.mp3": (None, "libmp3lame"), "i.flac": (None, "flac"), "j.ogg": (None, "libopus"),
    "k.aac": (None, "aac"),
}  # fmt: skip


def write_recordings(folder: pathlib.Path) -> None:
    """Recordings in every container that people bring."""
    for name, (video, audio) in RECORDINGS.items():
        write_recording(folder / name, video, audio)


def write_corpus(folder: pathlib.Path) -> None:
    """A corpus in the VASR layout, whose media are empty."""
    rows = [(f"clip-{n}", "0", 25.0, 16_000, f"câu số {n}", 5, 3200, "train") for n in range(8)]
    pd.DataFrame(rows, columns=vasr.COLUMNS).to_parquet(folder / "metadata.parquet")
    mapping = [{"id": row[0], "channel": f"kênh {number % 2}"} for number, row in enumerate(rows)]
    (folder / "mapping.json").write_text(json.dumps(mapping), encoding="utf-8")
    for row in rows:
        for place in (folder / "visual/0" / f"{row[0]}.mp4", folder / "audio/0" / f"{row[0]}.wav"):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()


def write_archive(folder: pathlib.Path) -> None:
    """A tar archive of two samples, with the sound in the videos."""
    with tarfile.open(folder / "a-train-000000.tar", "w") as archive:
        for number in range(2):
            texts = {"label": f"câu số {number}", "sample_id": f"a_{number}_0_0_5"}
            contents = {suffix: text.encode() for suffix, text in texts.items()} | {"video": _film()}
            for suffix, content in contents.items():
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def write_dataset(folder: pathlib.Path) -> None:
    """Tables with media in them, of both formats."""
    media = [{"bytes": _film(), "path": f"{number}.mp4"} for number in range(2)]
    table = pyarrow.table({"video": media, "text": ["câu một", "câu hai"], "speaker": ["a", "b"]})
    pyarrow.parquet.write_table(table, folder / "train-00000-of-00002.parquet")
    with pyarrow.ipc.new_stream(folder / "train-00001-of-00002.arrow", table.schema) as writer:
        writer.write_table(table)


@functools.cache
def _film() -> bytes:
    """Five frames and their sound."""
    file = io.BytesIO()
    samples = np.random.default_rng(0).integers(-9000, 9000, 3200).astype(np.int16)
    write_video(file, np.random.default_rng(0).integers(0, 255, (5, 96, 96)).astype(np.uint8), samples)
    return file.getvalue()


def write_manifest(folder: pathlib.Path) -> None:
    """Manifest and transcripts of a split."""
    lines = [f"clip-{n}-vi-vi\tvisual/0/{n}.mp4\taudio/0/{n}.wav\t5\t3200" for n in range(6)]
    write_lines(folder / "train.tsv", ["/data", *lines])
    write_lines(folder / "train.wrd", [f"câu số {n}" for n in range(6)])


def write_transcripts(folder: pathlib.Path) -> None:
    """A table of transcripts in both formats."""
    table = pd.DataFrame(
        [(f"clip-{n}", f"câu, số {n}", "valid") for n in range(6)], columns=["id", "transcript", "split"]
    )
    table.to_csv(folder / "transcripts.csv")
    table.to_parquet(folder / "transcripts.parquet")


def write_shards(folder: pathlib.Path) -> None:
    """Both kinds of record, each in a folder."""
    rng, counts = np.random.default_rng(0), np.array([1, 2, 1], np.int32)
    text = {"transcript": "xin chào", "source_language": "vi", "target_language": "vi"}
    features = {"features": rng.normal(size=(4, 6)).astype(np.float16), "cluster_counts": counts}
    clip = {"video": b"any", "audio": np.arange(9, dtype=np.int16)} | dict.fromkeys(MEDIA.counts, counts)
    for kind, content, width in ((FEATURES, features, 6), (MEDIA, clip, None)):
        place = folder / kind.name
        examples = [{"id": f"clip-{number}", **text, **content} for number in range(3)]
        records.write_shard(records.shard_path(place, "test", 0, 1, kind), examples, kind)
        records.write_metadata(place, width, ["test"], kind)


def write_report(folder: pathlib.Path) -> None:
    """Hypotheses, a report and the channels of its clips."""
    head, rows = "id\treference\thypothesis\tseconds\n", "".join(f"c{n}\tcâu số {n}\tcâu số\t{n}.5\n" for n in range(4))
    about = {"checkpoint": 3, "split": "test"}
    table = folder_of(folder, about) / "av_clean.tsv"
    table.parent.mkdir(parents=True)
    table.write_text(head + rows, encoding="utf-8")
    page.write_report(folder, page.make_report(about, {"av_clean": read_table(table)}, {}))
    (folder / "mapping.json").write_text(
        json.dumps([{"id": f"c{n}", "channel": "kênh"} for n in range(4)]), encoding="utf-8"
    )


def write_curves(folder: pathlib.Path) -> None:
    """What a training leaves for TensorBoard."""
    with SummaryWriter(str(folder), filename_suffix="", write_to_disk=True) as writer:
        for step in range(5):
            writer.add_scalar("loss", 1 / (step + 1), step, walltime=step)
    next(folder.glob("events.*")).rename(folder / "events.out")


def small_state() -> TrainState:
    """What a training saves, in miniature."""
    return TrainState(jnp.int32(3), {"weight": jnp.arange(40.0).reshape(5, 8)}, (jnp.ones(3, jnp.bfloat16),))


def write_checkpoint(folder: pathlib.Path) -> None:
    """A checkpoint of `small_state`."""
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(small_state(), None, '{"data": {"rows": 4}}', {"rank": 16}, {"commit": "a"}, {"accuracy": 0.5})
    checkpoints.close()


def write_export(folder: pathlib.Path) -> None:
    """The settings of an export."""
    settings = {"model_type": "viavsp", "feature_width": 8, "decoding": {"num_beams": 2, "max_new_tokens": 4}}
    code = {"auto_map": {"AutoConfig": "configuration_viavsp.ViAVSPConfig"}, "languages": {"vi": "tiếng Việt"}}
    (folder / "config.json").write_text(json.dumps(settings | code), encoding="utf-8")
