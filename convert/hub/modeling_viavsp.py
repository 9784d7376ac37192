"""Speech and mouth video in, text out: AV-HuBERT, averaged runs of frames, a projector and a LLaMA with its adapter.

Part of every export, for `AutoModel.from_pretrained(folder, trust_remote_code=True)`: it needs transformers, peft and
torch, and bitsandbytes where the language model is kept in 4 bits.

Letters: B clips, T frames (25 a second), n samples (16,000 a second), U runs of frames, E encoder width, D LLM width,
S positions, K clusters.
"""

import os
import pathlib
import re
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, BitsAndBytesConfig, PreTrainedModel

from .configuration_viavsp import ViAVSPConfig
from .ctc_viavsp import FILE as CTC_FILE
from .ctc_viavsp import UNITS, CTCHead, Hearing, load_ctc
from .encoders_viavsp import chosen_compression, load_encoders
from .feature_extraction_viavsp import SAMPLES_PER_FRAME, audio_features, video_input
from .language_model_viavsp import ExportError, entry_of_json, load_llm, trained_against, with_adapter
from .loading_viavsp import NOTHING_MISSING, check_outputs, find_export, placement, sorted_keywords, weights_dtype
from .prompt_viavsp import Wording, after_speech, before_speech, until_end
from .saving_viavsp import Origin, save, upload_export
from .search_viavsp import generate, generation_config, scores
from .segments_viavsp import nearest, run_lengths, segment_means

Clips = Sequence[np.ndarray | None]

# Of bytes and of line and paragraph separators; a vocabulary of bytes has them all.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_USE = "use transcribe(video, audio), or recognize(features, counts, languages), which return texts"


class ViAVSPModel(PreTrainedModel):
    """An exported model, ready to decode."""

    config_class = ViAVSPConfig
    base_model_prefix = "llm"
    input_modalities = ("audio", "video")
    # The language model decides; it is loaded first.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: ViAVSPConfig, llm: PreTrainedModel, projector: torch.nn.Linear, tokenizer: Any):
        super().__init__(config)
        self.llm, self.projector, self.tokenizer = llm.eval(), projector, tokenizer
        self.encoder = self.cluster_encoder = self.centers = None
        self.ctc: CTCHead | None = None  # of a training with one
        self.hearing: Hearing | None = None  # what it is used with
        self.origin: Origin | None = None  # of from_pretrained, for save_pretrained
        if getattr(llm, "is_quantized", False):  # transformers then says which of half() and to() cannot be
            self.is_quantized, self.quantization_method = True, llm.quantization_method
        self.begin_id, end_id = tokenizer.bos_token_id, tokenizer.get_vocab().get(config.end_token)
        if end_id is None:
            raise ExportError(f"the tokenizer has no token {config.end_token!r}, which is the end_token of config.json")
        self.end_ids = (end_id, *config.other_end_ids)
        self.wording = Wording(
            config.recognition_instruction, config.translation_instruction, config.languages,
            None if config.chat is None else tuple(config.chat),
        )  # fmt: skip
        # Replaces the language model's own, so that no repetition penalty or the like of it applies.
        llm.generation_config = generation_config(config.decoding, {}, self.begin_id, self.end_ids)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike,
        *,
        config: ViAVSPConfig | None = None,
        base_model: str | os.PathLike | None = None,
        merged: bool | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        quantization_config: BitsAndBytesConfig | dict[str, Any] | None = None,
        subfolder: str = "",
        output_loading_info: bool = False,
        **keywords: Any,
    ) -> Any:
        """Loads an export.

        Args:
          folder: the export, or its name on the Hugging Face hub.
          config: that of the export, if it was read already.
          base_model: folder or name of the base language model; None: where it was when it was converted.
          merged: whether to use `merged/` in place of base model and adapter; None: if the export holds it.
          dtype: of the weights; None or auto: that of the training. torch_dtype is its old name.
          device_map: cpu (the default), cuda, cuda:N, {"": one of these}, or auto: of several GPUs, the language model
            takes as many as it needs.
          quantization_config: how the language model is kept; None: as in the training.
          subfolder: the folder in it that holds the export.
          output_loading_info: whether to return (model, what was missing or too much): nothing, else it raises.
          keywords: attn_implementation and max_memory, for the language model; cache_dir, force_download,
            local_files_only, revision and token, for the hub.

        Raises TypeError for any other keyword, ExportError when a part of the export is missing or a value does not do.
        """
        hub, options = sorted_keywords(keywords)
        root, place = find_export(folder, subfolder, hub), placement(device_map)
        config = config or ViAVSPConfig.from_pretrained(root)
        check_outputs(config)
        merged = (root / "merged").exists() if merged is None else merged
        parts = ("projector.safetensors", "merged" if merged else "adapter/adapter_model.safetensors")
        for name in (*parts, *(CTC_FILE, UNITS) * bool(config.ctc)):
            if not (root / name).exists():
                raise ExportError(f"{root / name} does not exist: expected an export of python -m convert.to_hf")
        dtype = weights_dtype(torch_dtype if dtype is None else dtype, config)
        if config._attn_implementation:  # AutoModel says it by the config
            options.setdefault("attn_implementation", config._attn_implementation)
        if merged:
            base = root / "merged"
            llm = load_llm(base, quantization_config, place, dtype, **options)
        else:
            base = base_model or entry_of_json(root / "adapter/adapter_config.json", "base_model_name_or_path")
            nf4 = config.quantization == "nf4" and quantization_config is None
            how = trained_against(dtype) if nf4 else quantization_config
            elsewhere = {name: value for name, value in hub.items() if name != "revision"}
            llm = with_adapter(load_llm(base, how, place, dtype, **options, **elsewhere), root / "adapter")
        weights = load_file(root / "projector.safetensors")
        projector = torch.nn.Linear(config.feature_width, llm.config.hidden_size, dtype=dtype)
        projector.load_state_dict({name.removeprefix("avfeat_to_llm."): value for name, value in weights.items()})
        tokenizer = AutoTokenizer.from_pretrained(root, config=llm.config, trust_remote_code=False)
        config._attn_implementation = llm.config._attn_implementation
        model = cls(config, llm, projector.to(llm.device), tokenizer)
        base = os.path.abspath(base) if os.path.isdir(base) else os.fspath(base)
        model.origin = Origin(root, merged, base)
        model.encoder, model.cluster_encoder, model.centers = load_encoders(config, root, llm.device, dtype)
        model.ctc, model.hearing = load_ctc(config, root, llm.device, dtype)
        return (model, NOTHING_MISSING) if output_loading_info else model

    @classmethod
    def _from_config(cls, config: ViAVSPConfig, **keywords: Any) -> "ViAVSPModel":
        raise ExportError("a config holds no weights, and an export is never trained anew: expected from_pretrained")

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *,
        is_main_process: bool = True,
        max_shard_size: int | str = "50GB",
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **upload: Any,
    ) -> None:
        """Writes an export again, of the weights as they are now, for any machine that has the base language model.

        How the language model was quantized or attended at loading is not part of it, unless it is `merged/`.

        Args:
          save_directory: a new or an empty folder, or an earlier export, which is replaced.
          is_main_process: False: nothing is written.
          max_shard_size: of a file of the language model, where it is merged.
          push_to_hub: also upload it, to `repo_id` (default: the folder's name).
          upload: see push_to_hub.

        Raises ExportError before anything is written if something else is in that folder.
        """
        if upload and not push_to_hub:
            raise TypeError(f"save_pretrained of an export takes no keyword {', '.join(sorted(upload))}")
        if is_main_process:
            save(self, save_directory, max_shard_size)
            if push_to_hub:
                upload_export(save_directory, repo_id or pathlib.Path(save_directory).absolute().name, **upload)

    def push_to_hub(self, repo_id: str, *, max_shard_size: int | str = "50GB", **upload: Any) -> Any:
        """Uploads an export, as save_pretrained writes it, to the Hugging Face hub; returns the commit.

        `upload` are private, token, revision, commit_message, commit_description and create_pr.
        """
        with tempfile.TemporaryDirectory() as folder:
            save(self, folder, max_shard_size)
            return upload_export(folder, repo_id, **upload)

    def __getattr__(self, name: str) -> Any:
        if name == "generate":
            raise AttributeError(f"an export has no generate: {_USE}")
        return super().__getattr__(name)

    def forward(self, *_: Any, **__: Any) -> None:
        """An export is not trained, and one pass of it is no text."""
        raise NotImplementedError(f"an export is not called: {_USE}")

    @torch.inference_mode()
    def transcribe(
        self,
        video: Clips | None = None,
        audio: Clips | None = None,
        source_language: str = "vi",
        target_language: str = "vi",
        num_frames: Sequence[int] | None = None,
        compression: str | None = None,
        **search: Any,
    ) -> list[list[dict[str, Any]]]:
        """What is said in clips.

        Args:
          video: grey mouth crops uint8[T, 96, 96] of each clip, as AV-HuBERT takes them; None: audio alone.
          audio: speech int16[n] of each clip, 16 kHz; None: video alone.
          source_language, target_language: what is spoken and what is wanted, e.g. vi and vi.
          num_frames: T of each clip; None: as many as it has pictures or, without video, as its speech takes.
          compression: how frames become positions, see compression_viavsp.py; None: as config.json says.
          search: settings of transformers' `generate` in place of those of the training, e.g. num_beams=5; and
            ctc_weight, of the CTC head when the hypotheses are ranked.

        Returns the hypotheses of each clip, best first: {"text", "score" (a log-probability, by the length penalty of
        the search; where the head ranks several, with its own added, times the weight), "tokens"}. With a CTC head, the
        best of a clip that is not translated also has "words": {"text", "start", "end" (seconds), "confidence" (from 0
        to 1; None: the training was not calibrated)} of each.

        Raises ExportError if the export has no encoder, or no clusters where they are needed, or nothing is given.
        """
        features, counts = self.encode(video, audio, num_frames, compression=compression)
        return self.recognize(features, counts, [(source_language, target_language)] * len(features), **search)

    @torch.inference_mode()
    def encode(
        self,
        video: Clips | None,
        audio: Clips | None,
        num_frames: Sequence[int] | None = None,
        shown: Clips | None = None,
        compression: str | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Clips as in `transcribe` → features float[T, E] and lengths int64[U] of the runs to be averaged, of each.

        `shown` is bool[T] of each clip, False where the mouth is not seen; None: it is everywhere.
        """
        way = chosen_compression(self.config, compression)
        if video is None and audio is None:
            raise ExportError("neither video nor audio is given: expected at least one of them")
        lengths = num_frames or [
            len(x) if video is not None else -(-len(x) // SAMPLES_PER_FRAME) for x in video or audio
        ]
        heard = audio and [
            audio_features(samples, t, self.encoder.waveform) for samples, t in zip(audio, lengths, strict=True)
        ]
        seen = video and [video_input(frames) for frames in video]
        modality = "av" if audio and video else "audio" if audio else "video"
        inputs, device = (heard, seen, lengths, (modality,)), self.projector.weight.device
        if way.by_clusters:
            clusters, final = self.cluster_encoder.encode_clips(*inputs, self.config.cluster_layer, shown)[modality]
            runs = [
                run_lengths(nearest(x[:t], self.centers.to(x.device))) for x, t in zip(clusters, lengths, strict=True)
            ]
        else:
            runs = [torch.tensor([t]) for t in lengths]
        if self.config.trained_encoder or not way.by_clusters:
            final = self.encoder.encode_clips(*inputs, None, shown)[modality][1]
        if not self.config.trained_encoder:
            final = final.half()  # as in the shards that the model was trained on
        counts = [torch.tensor(way.run_lengths(one.cpu().numpy()), device=device).long() for one in runs]
        return [x[:t] for x, t in zip(final, lengths, strict=True)], counts

    @torch.inference_mode()
    def recognize(
        self, features: Sequence[Tensor], counts: Sequence[Tensor], languages: Sequence[tuple[str, str]], **search: Any
    ) -> list[list[dict[str, Any]]]:
        """From encoder features on, as `transcribe`; `languages` are (source, target) of each clip."""
        hearing = self.hearing and self.hearing.with_weight(search.pop("ctc_weight", None))
        x, mask = self.embed(features, counts, languages)
        settings = generation_config(self.config.decoding, search, self.begin_id, self.end_ids)
        penalty = float((self.config.decoding | search).get("repetition_penalty", 1.0))
        settings.num_return_sequences = settings.num_beams
        found = []
        for clip, ids in enumerate(generate(self.llm, x, mask, settings, penalty).split(settings.num_beams)):
            values, norms = scores(self.llm, x[clip, mask[clip].bool()], ids, settings, penalty)
            hypotheses = [
                {"text": self.text(one), "score": score, "tokens": self.until_end(one)}
                for one, score in zip(ids.tolist(), values.tolist(), strict=True)
            ]
            found.append(self.heard(features[clip], hypotheses, norms.tolist(), languages[clip], hearing))
        return found

    def heard(
        self,
        features: Tensor,
        hypotheses: list[dict[str, Any]],
        norms: Sequence[float],
        languages: tuple[str, str],
        hearing: Hearing | None,
    ) -> list[dict[str, Any]]:
        """Hypotheses of a clip, ranked and with their words by the CTC head, if there is one; see Hearing.ranked.

        `features` are [T, E]. A translation is not what is said, and stays as it is.
        """
        if hearing is None or languages[0] != languages[1]:
            return hypotheses
        return hearing.ranked(self.ctc.log_probs(features), hypotheses, norms)

    def embed(
        self, features: Sequence[Tensor], counts: Sequence[Tensor], languages: Sequence[tuple[str, str]]
    ) -> tuple[Tensor, Tensor]:
        """Prompts of clips, padded on the left: embeddings [B, S, D] and attention mask int[B, S]."""
        device, dtype = self.projector.weight.device, self.projector.weight.dtype

        def embedded(ids: list[int]) -> Tensor:
            return self.llm.get_input_embeddings()(torch.tensor(ids, dtype=torch.long, device=device))

        after, rows = embedded(after_speech(self.tokenizer, self.wording)), []
        for frames, lengths, pair in zip(features, counts, languages, strict=True):
            # Rounded to the compute dtype before the mean too, as in training.
            means = segment_means(frames.to(device, dtype), lengths.to(device).long())
            rows.append(torch.cat([embedded(self.instruction(*pair)), self.projector(means.to(dtype)), after]))
        size = max(map(len, rows))
        x = torch.stack([torch.nn.functional.pad(row, (0, 0, size - len(row), 0)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows], device=device)
        mask = torch.arange(size, device=device)[None] >= size - lengths[:, None]
        return x, mask.long()

    def instruction(self, source: str, target: str) -> list[int]:
        """Token ids of all that precedes the speech."""
        try:
            return before_speech(self.tokenizer, self.wording, source, target)
        except ValueError as error:
            raise ExportError(str(error)) from None

    def text(self, ids: list[int]) -> str:
        """Text of generated ids, up to the end token: one line, without control characters."""
        text = self.tokenizer.decode(self.until_end(ids), skip_special_tokens=True)
        return " ".join(_CONTROLS.sub(" ", text).split())

    def until_end(self, ids: list[int]) -> list[int]:
        """Generated ids without what ends them and fills them up."""
        return until_end(ids, self.end_ids)
