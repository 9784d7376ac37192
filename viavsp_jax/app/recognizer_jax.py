"""A training checkpoint, by JAX: on all devices of this machine, without PyTorch."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from convert.work_folder import chosen_compression, open_work_folder, training_shards
from viavsp_jax import sharding
from viavsp_jax.app.recognizer import Hypothesis, Recognition, Utterance, timed_words
from viavsp_jax.data import lost, pipeline
from viavsp_jax.data.features import AUDIO_DIM, FRAME_SIZE, audio_features, center_crop
from viavsp_jax.data.vocabulary import read as read_units
from viavsp_jax.decoding.decoder import Decoder, fill_up
from viavsp_jax.decoding.frames import Hearing, jit_log_probs, nbest_of
from viavsp_jax.experiment import load_experiment
from viavsp_jax.prepare.features import provenance
from viavsp_jax.prepare.features.encoder_jax import JaxEncoder
from viavsp_jax.prepare.features.reading import Media
from viavsp_jax.prepare.kmeans import assign, load_centers, run_lengths
from viavsp_jax.runtime.compilation_cache import keep_programs
from viavsp_jax.settings import completed


class JaxRecognizer:
    """A recognizer.Recognizer of a work folder."""

    def __init__(
        self,
        workdir: epath.PathLike,
        batch_size: int,
        step: str = "best",
        llm: epath.PathLike | None = None,
        encoder: epath.PathLike | None = None,
        kmeans: epath.PathLike | None = None,
        dtype: str | None = None,
        compression: str | None = None,
    ):
        """Loads the checkpoint and what it was trained around, to decode at most `batch_size` utterances at a time.

        The rest is as in Transcriber.from_pretrained; encoder and centres are those that the shards were made with, as
        far as they are needed: frames that are pooled have no clusters, and a trained encoder then does alone.

        Raises InputError if one of them is not there or does not fit.
        """
        keep_programs(workdir)
        opened = open_work_folder(workdir, step, llm, encoder)
        config = completed(opened.saved_config)
        config.llm.path, config.dtype = str(opened.llm), dtype or config.dtype
        if config.encoder.train:
            config.encoder.path = str(opened.encoder_path)
        # Whatever mesh it was trained on: each device holds a part of the weights and as many rows as the others.
        config.mesh = {"data": 1, "fsdp": -1, "tensor": 1}
        config.evaluate.rows = -(-batch_size // jax.device_count()) * jax.device_count()
        self._experiment = experiment = load_experiment(config)
        shards, self._settings = training_shards(experiment.settings.data), experiment.settings
        self._compression = way = chosen_compression(opened, compression)
        self.longest, self.num_beams = provenance.longest_clip(shards), self._settings.evaluation.decoding.num_beams
        self.tokenizer, self.trained_on = epath.Path(opened.llm) / "tokenizer.json", tuple(self._settings.data.train)
        self.knows_lost_video = lost.is_in(config.to_dict())
        self._encoder = self._centers = self._layer = None
        if way.by_clusters:
            folder, centers = provenance.encoder_and_centers(shards, encoder, kmeans)
            self._centers, self._layer = load_centers(str(centers))
        elif not self._settings.data.of_clips:
            folder, _ = provenance.encoder_and_centers(shards, encoder, clustered=False)
        if way.by_clusters or not self._settings.data.of_clips:
            # Of one length all, so that one program is compiled.
            self._encoder = JaxEncoder(folder, "float32", batch_size, self.longest)
        trainable = opened.checkpoints.restore_trainable(opened.step, experiment.trainable)
        stats = opened.checkpoints.restore_batch_stats(opened.step, experiment.batch_stats)
        saved_units = opened.checkpoints.restore_units(opened.step)
        opened.checkpoints.close()
        self._decoders: dict[int, Decoder] = {}  # by beams
        self._weights = trainable, experiment.load_frozen() | stats
        self._hearing = None
        if experiment.model.ctc:
            log_probs = functools.partial(jit_log_probs(experiment.mesh, experiment.structure), *self._weights)
            self._hearing = Hearing(log_probs, read_units(workdir, saved_units), opened.calibration)
        self.knows_words = self._hearing is not None

    def __call__(
        self, utterances: Sequence[Utterance], languages: tuple[str, str], num_beams: int
    ) -> list[Recognition]:
        """See Recognizer."""
        records = self._records(utterances, languages)
        decoder, prompt, found = self._decoder(num_beams), self._experiment.prompt, {}
        data, rows, bucket = self._settings.data, self._settings.evaluation.rows, self._settings.evaluation.bucket
        for batch_records, batch in pipeline.decoding_batches(data, prompt, records, rows, bucket):
            batch = sharding.put_whole_batch(self._experiment.mesh, fill_up(batch, batch_records))
            tokens, scores = jax.device_get(decoder(*self._weights, batch))
            hearing = self._hearing if languages[0] == languages[1] else None  # a translation is not what is said
            heard = hearing(batch, batch_records) if hearing else [None] * len(batch_records)
            for record, ids, values, frames in zip(batch_records, tokens, scores, heard, strict=False):
                texts, words = [prompt.text(one.tolist()) for one in ids], None
                nbest = nbest_of(texts, ids, values, decoder.config, prompt.end_ids)
                if hearing:
                    nbest = hearing.ranked(nbest, frames)
                    words = timed_words(nbest, frames, hearing.units, hearing.calibration.confidence)
                hypotheses = tuple(map(Hypothesis, nbest.texts, nbest.scores.tolist()))
                found[record["id"]] = Recognition(hypotheses, record["cluster_counts"], words)
        return [found[record["id"]] for record in records]

    def _decoder(self, num_beams: int) -> Decoder:
        """The one for so many beams, whose programs are kept."""
        if num_beams not in self._decoders:
            config = dataclasses.replace(self._settings.evaluation.decoding, num_beams=num_beams)
            e = self._experiment
            self._decoders[num_beams] = Decoder(e.mesh, e.structure, config, e.prompt.end_ids)
        return self._decoders[num_beams]

    def _records(self, utterances: Sequence[Utterance], languages: tuple[str, str]) -> list[dict[str, Any]]:
        """What the pipeline reads, as shards would hold it: features, or clips where the encoder is trained."""
        modality, clusters, final = utterances[0].modality, None, None
        if self._encoder is not None:
            items = [_media(one, self._encoder.config.waveform) for one in utterances]
            lengths = [one.num_frames for one in utterances]
            outputs = self._encoder.encode(items, lengths, (modality,), self._layer)[modality]
            clusters, final = (None if output is None else self._encoder.to_host(output) for output in outputs)
        records = []
        for row, one in enumerate(utterances):
            runs = np.array([one.num_frames])
            if clusters is not None:
                runs = run_lengths(assign(clusters[row, : one.num_frames], self._centers))
            record = {
                "id": str(row),
                "source_language": languages[0],
                "target_language": languages[1],
                "cluster_counts": self._compression.run_lengths(runs),
            }
            if self._settings.data.of_clips:
                record |= {
                    "video": center_crop(_frames(one)),
                    "audio": _audio(one, self._settings.data.waveform),
                    "has_audio": modality != "video",
                    "has_video": np.full(one.num_frames, modality != "audio") if one.seen is None else one.seen,
                }
            else:
                record["features"] = final[row, : one.num_frames].astype(np.float16)
            records.append(record)
        return records


def _media(utterance: Utterance, waveform: str) -> Media:
    """What an encoder of that waveform takes; what is missing is zeros."""
    return Media(_frames(utterance), _audio(utterance, waveform), b"", utterance.samples, utterance.seen)


def _frames(utterance: Utterance) -> np.ndarray:
    if utterance.frames is None:
        return np.zeros((utterance.num_frames, FRAME_SIZE, FRAME_SIZE), np.uint8)
    return utterance.frames


def _audio(utterance: Utterance, waveform: str) -> np.ndarray:
    if utterance.samples is None:
        return np.zeros((utterance.num_frames, AUDIO_DIM), np.float32)
    return audio_features(utterance.samples, utterance.num_frames, waveform)
