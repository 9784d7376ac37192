"""The README.md of an export: what the model is, how to load it, what it was trained on and how well it did."""

import pathlib
import sys

from etils import epath

from convert.work_folder import WorkFolder
from viavsp_jax import __version__
from viavsp_jax.data.compression import CLUSTERS, Compression
from viavsp_jax.evaluation.report.results import name_of, read_all, search_of
from viavsp_jax.runtime.errors import InputError

_LOAD = """\
```python
import torch
from transformers import AutoModel

model = AutoModel.from_pretrained("{name}", trust_remote_code=True{base}, device_map="cuda")
"""

_MEDIA = """\
# video: uint8[T, 96, 96], grey mouth crops at 25 frames a second; audio: int16[n], 16 kHz mono.
# Either of them may be left out.
for hypotheses in model.transcribe(video=[video], audio=[audio]):
    print(hypotheses[0]["text"], hypotheses[0]["score"])
```

`pipeline("automatic-speech-recognition", model="{name}", trust_remote_code=True)` takes short files of sound, arrays or
`{{"audio": audio, "video": video}}`. `model.save_pretrained` and `model.push_to_hub` write the whole folder again.

For a file of any kind and length, `pip install 'viavsp-jax[app]'` and

```bash
python -m viavsp_jax.transcribe clip.mp4 --model {name}
```

which finds the face, cuts out the mouth and writes text or subtitles.
"""

_FEATURES = """\
# The export has no encoder: features float[T, {width}] and the lengths of their runs int64[U] come from elsewhere.
for hypotheses in model.recognize([features], [counts], [("vi", "vi")]):
    print(hypotheses[0]["text"], hypotheses[0]["score"])
```
"""


def model_card(opened: WorkFolder, workdir: epath.Path, compression: Compression, merged: bool, media: bool) -> str:
    """Markdown with the metadata of the Hugging Face hub.

    Args:
      opened: the checkpoint that was exported.
      workdir: its work folder, where reports of evaluations may lie.
      compression: how its frames become positions.
      merged: whether the language model is part of the export.
      media: whether the export goes from media to text.
    """
    name, llm = "FOLDER", pathlib.Path(opened.conversion["source"]).name
    nf4 = opened.settings.llm.quantization == "nf4"
    base = "" if merged else ', base_model="LLM_FOLDER"'
    parts = [
        _metadata(media),
        "# ViAVSP: Vietnamese speech from mouth video and sound\n\n"
        f"AV-HuBERT encodes a speaking face, {_averaged(compression)} are averaged, and a language "
        "model with a LoRA adapter reads the averages and writes what was said. Trained and exported with "
        f"viavsp_jax {__version__}.\n",
        "## How to load it\n\nIt needs `torch`, `transformers` and `peft`"
        + (", and `bitsandbytes` for the 4-bit weights that it was trained against" if nf4 else "")
        + ". `trust_remote_code` runs the Python files beside this one: read them first. Without `merged/` the base "
        f"language model (`{llm}`) is read from where it lay at conversion, or from `base_model`.\n\n"
        + _LOAD.format(name=name, base=base)
        + (_MEDIA.format(name=name) if media else _FEATURES.format(width=opened.settings.data.feature_width)),
        _training(opened),
        _scores(opened, workdir),
        "## Limits and licences\n\n"
        "It was trained on short clips and writes lower-case text without punctuation. Lip reading guesses where "
        "sounds look alike: do not take its text for what somebody said without checking. Do not use it to transcribe "
        "people who did not agree. The encoder grew from AV-HuBERT, whose licence is non-commercial; the language "
        "model and the training data keep their own licences.\n",
    ]
    return "\n".join(parts)


def _averaged(compression: Compression) -> str:
    if not compression.by_clusters:
        return f"every {compression.most} frames"
    most = f", at most {compression.most}," if compression.most else ""
    return f"runs of frames in the same K-Means cluster{most}"


def _metadata(media: bool) -> str:
    lines = [
        "---", "language: vi", "library_name: transformers",
        *(["pipeline_tag: automatic-speech-recognition"] if media else []),
        "license: other", "tags: [lip-reading, audio-visual-speech-recognition, vietnamese, lora]",
        "metrics: [wer, cer]", "---", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _training(opened: WorkFolder) -> str:
    s = opened.settings
    rows = [
        ("training data", ", ".join(s.data.train)),
        ("updates", f"{opened.step} of {s.training.updates}, the best by validation accuracy"),
        ("encoder", f"trained from update {s.optimizer.freeze_updates} on" if opened.encoder else "frozen"),
        ("LoRA", f"rank {s.lora.rank}, alpha {s.lora.alpha}, dropout {s.lora.dropout}, on {', '.join(s.lora.targets)}"),
        *([("speech positions by", ", ".join(map(str, ways)))] if (ways := s.data.compression) != (CLUSTERS,) else []),
        *([("instruction", repr(s.prompt.instruction))] if s.prompt.instruction else []),
        *([("prompt", "in the chat template of the language model")] if s.prompt.chat else []),
        ("peak learning rate", s.optimizer.peak_lr),
        ("language model in training", s.llm.quantization.replace("none", s.dtype)),
        ("language model sha256", opened.conversion["sha256"]),
    ]  # fmt: skip
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"## Training\n\n| | |\n|---|---|\n{table}\n\n`config.json` holds every setting under `training`.\n"


def _scores(opened: WorkFolder, workdir: epath.Path) -> str:
    """Of the results of all evaluations those of the checkpoint that is exported."""
    try:
        reports = read_all(workdir)
    except InputError as error:
        print(f"note: the card of the export will not say how well it did, {error}", file=sys.stderr)
        reports = {}
    step, sums = opened.step, opened.checkpoints.weights_sum(opened.step)
    rows = [
        f"| {name_of(key, about)} | {report[key]['clips']} | {100 * report[key]['wer']:.2f} "
        f"| {100 * report[key]['cer']:.2f} | {about['split']} | {search_of(about)} |"
        for report in reports.values()
        for key, about in report["evaluations"].items()
        # Earlier versions did not tell the weights of two trainings apart.
        if about["checkpoint"] == step and about.get("weights", sums) == sums and "wer" in report[key]
    ]
    if not rows:
        return "## Scores\n\nThis checkpoint was not evaluated before it was exported.\n"
    table = "\n".join(["| data | clips | WER % | CER % | split | search |", "|---|---|---|---|---|---|", *rows])
    return f"## Scores\n\nCorpus rates:\n\n{table}\n"
