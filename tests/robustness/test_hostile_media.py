"""Media made by strangers with bad intent: lists of other files, tiny files of huge pictures, false lengths."""

import fractions
import struct
import wave
import zlib

import av
import numpy as np
import pytest
from hostile_reading import refused
from places import GOLDEN

from viavsp_jax.data import media
from viavsp_jax.data.features import SAMPLE_RATE
from viavsp_jax.prepare.recordings.recording import read_recording


@pytest.mark.parametrize("text", [
    "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
    "ffconcat version 1.0\nfile '{secret}'\n",
    "ffconcat version 1.0\nfile 3\n", "v=0\nm=video 1 RTP/AVP 96\na=control:file://{secret}\n",
])  # fmt: skip
def test_lists_of_files_are_no_media(tmp_path, text):
    secret = GOLDEN / "media/utt0.mp4"
    for name in ("list.mp4", "list.m3u8"):
        (tmp_path / name).write_text(text.format(secret=secret))
        refused("not a readable video file", media.read_video, tmp_path / name)
        refused("not a media file", read_recording, tmp_path / name)


def picture_bomb(path, side):
    """One black PNG picture of side x side in a mov file."""

    def chunk(tag, data):
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    rows = zlib.compress(bytes((side + 1) * side), 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=25)
        stream.width = stream.height = 96
        stream.pix_fmt = "gray"
        packet = av.Packet(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
        packet.stream, packet.pts, packet.dts, packet.time_base = stream, 0, 0, fractions.Fraction(1, 25)
        container.mux(packet)


def test_pictures_far_larger_than_their_file(tmp_path):
    path = tmp_path / "bomb.mov"
    picture_bomb(path, 10_000)
    refused("bomb.mov: no picture of its video could be decoded", read_recording, path)
    refused("bomb.mov: no video frame could be decoded", media.read_video, path)


@pytest.mark.parametrize("starts", [[0, 7200], [0, 1900, 3801]])
def test_sound_far_away_is_not_waited_for(tmp_path, starts):
    """Each gap would become silence: 115 MB an hour."""
    path = tmp_path / "gaps.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for start in starts:
            frame = av.AudioFrame.from_ndarray(np.ones((1, 1600), np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = 16_000, 16_000 * start
            container.mux(stream.encode(frame))
    refused("gaps.mkv: its sound leaps", read_recording, path, megabytes=200)


@pytest.mark.parametrize("samples", [1 << 30, (1 << 31) - 20])
def test_speech_that_declares_more_than_it_has(tmp_path, samples):
    path = tmp_path / "speech.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", None))
        file.writeframes(bytes(200))
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<I", 200), struct.pack("<I", 2 * samples)))
    refused(f"truncated wav file, 100 samples where its header says {samples}", media.read_audio, path)
