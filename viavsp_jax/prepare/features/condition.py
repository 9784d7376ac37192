"""What the shards stage does to the clips of a run before they are encoded: its options, its name, its record."""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any, get_args

from etils import epath

from viavsp_jax.data import lost, noise
from viavsp_jax.data.features import FRAME_RATE
from viavsp_jax.data.wild import Wild
from viavsp_jax.prepare.corpus.entries import CLEAN
from viavsp_jax.prepare.features import provenance
from viavsp_jax.prepare.features.reading import Changes, Noise, Talkers
from viavsp_jax.prepare.manifest_files import Clip
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.runtime.options import MAX_SEED, real, whole


@dataclasses.dataclass(frozen=True)
class Condition:
    """The options, checked; None where nothing is to be done."""

    noise: str | None
    recordings: noise.Recordings | None  # in place of babble
    snr_db: float | None
    talkers: int
    wild: float | None  # seconds
    lost: lost.LostVideo | None
    seed: int

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """The options."""
        parser.add_argument(
            "--noise",
            metavar="KIND",
            help="add noise to the audio: babble (other clips of the split) or a folder with 16 kHz mono wav files",
        )
        parser.add_argument(
            "--snr",
            type=real("--snr", at_least=-100, at_most=100),
            metavar="DB",
            help="signal-to-noise ratio in dB, with --noise",
        )
        parser.add_argument(
            "--talkers",
            type=whole("--talkers", 1),
            default=noise.NUM_TALKERS,
            help=f"people who talk at once, with --noise babble (default {noise.NUM_TALKERS})",
        )
        parser.add_argument(
            "--wild",
            type=real("--wild", at_least=0.04, at_most=10),
            metavar="SECONDS",
            help="change the clips into what people record: up to so many seconds of pause at each end, or 0.12 s "
            "less; noise of a room; telephones; too quiet or clipped",
        )
        parser.add_argument(
            "--lost_video",
            type=real("--lost_video", at_least=0.01, at_most=1),
            metavar="SHARE",
            help="lose this share of each clip's frames, in spans of 0.4 to 2 s, as behind a hand",
        )
        parser.add_argument(
            "--lost_policy",
            choices=get_args(lost.Policy),
            help="what is seen there: zeros, as of a missing modality; held: the last picture stays (default zeros)",
        )
        parser.add_argument(
            "--seed",
            type=whole("--seed", 0, MAX_SEED),
            default=0,
            help="seed of --noise, --wild and --lost_video (default 0)",
        )

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Condition":
        """Raises InputError if options do not go together, or noise is not usable."""
        if (args.noise is None) != (args.snr is None):
            raise InputError("--noise and --snr go together: give both, or neither for clean audio.")
        if args.noise and args.kind != "media" and "video" in args.modalities:
            raise InputError("--noise does not change video features, leave video out of --modalities.")
        if args.talkers != noise.NUM_TALKERS and args.noise != noise.BABBLE:
            raise InputError(f"--talkers is {args.talkers}, which goes with --noise babble.")
        if args.wild and args.kind != "features":
            raise InputError("--wild goes with --kind features: records of media hold the clips' own files.")
        if args.lost_policy and not args.lost_video:
            raise InputError("--lost_policy goes with --lost_video.")
        if args.lost_video and args.kind != "features":
            raise InputError(
                "--lost_video goes with --kind features: av_lost25 in config.evaluate.names is made of media_clean."
            )
        if args.lost_video and "audio" in args.modalities:
            raise InputError("--lost_video does not change audio features, leave audio out of --modalities.")
        recordings = noise.Recordings(args.noise) if args.noise not in (None, noise.BABBLE) else None
        share = args.lost_video and lost.lost_share(args.lost_video, args.lost_policy or "zeros", args.seed)
        return cls(args.noise, recordings, args.snr, args.talkers, args.wild, share, args.seed)

    def name_of(self, recorded: str) -> str:
        """What follows the modality in names of dataset folders, for clips that were `recorded` under a condition."""
        parts = [recorded] if recorded != CLEAN else []
        if self.noise:
            few = "" if self.talkers == noise.NUM_TALKERS else self.talkers
            kind = self.recordings.name if self.recordings else f"{self.noise}{few}"
            parts.append(f"{kind}_{self.snr_db:g}db")
        if self.wild:
            parts.append("wild")
        if self.lost:
            parts.append(self.lost.suffix)
        return "_".join(parts or [CLEAN])

    @property
    def pause(self) -> int:
        """Frames by which an end of a clip is moved at most."""
        return round((self.wild or 0) * FRAME_RATE)

    def record(self) -> dict[str, Any]:
        """For provenance.json; what earlier versions could not do is there only if it is done."""
        found: dict[str, Any] = {"noise": None}
        if self.noise:
            paths = self.recordings.paths if self.recordings else ()
            kind = provenance.sha256(*map(epath.Path, paths)) if paths else self.noise
            found["noise"] = {"kind": kind, "snr_db": self.snr_db, "seed": self.seed}
        if self.talkers != noise.NUM_TALKERS:
            found["noise"]["talkers"] = self.talkers
        if self.wild:
            found["wild"] = {"seconds": self.wild, "seed": self.seed}
        if self.lost:
            found["lost_video"] = dataclasses.asdict(self.lost)
        return found

    def changes(self, clips: Sequence[Clip], split: Sequence[Clip]) -> Changes:
        """Of some clips of a split."""
        added = None
        if self.noise:
            source = self.recordings or Talkers(split, len(split))
            added = Noise(source, self.snr_db, self.seed, self.talkers).for_clips(clips)
        return Changes(Wild(self.pause, self.seed) if self.wild else None, added, self.lost)
