"""Frames that are not seen: how many, in which pieces, and what is in their place."""

import numpy as np
import pytest

from viavsp_jax.data.lost import DropFrames, LostVideo, lost_share, split_name


def pieces(seen):
    """Sizes of the spans that are lost."""
    edges = np.diff(np.pad(~seen, 1).astype(int))
    return np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)


def test_spans_of_a_training_clip():
    """As the masks of SpecAugment: from no frame to the largest, anywhere inside."""
    rng = np.random.default_rng(0)
    lost = np.stack([~DropFrames(1, 10).seen(40, rng) for _ in range(400)])
    sizes = lost.sum(1)
    assert {*sizes} == {*range(11)} and sizes.mean() == pytest.approx(5, abs=0.6)
    assert max(len(pieces(~one)) for one in lost) == 1
    assert lost[:, [0, -1]].any(0).all()
    more = np.stack([~DropFrames(3, 10).seen(40, rng) for _ in range(400)])
    assert more.sum(1).max() > 10 and max(len(pieces(~one)) for one in more) == 3
    assert DropFrames(2, 10).seen(3, rng).shape == (3,)
    before = rng.bit_generator.state
    assert DropFrames(0, 10).seen(40, rng).all() and rng.bit_generator.state == before


@pytest.mark.parametrize("percent, frames, expected", [
    (25, 100, 25), (50, 75, 38), (100, 40, 40), (12.5, 80, 10), (1, 20, 1), (25, 1000, 250),
])  # fmt: skip
def test_a_share_is_lost_in_spans(percent, frames, expected):
    found = [LostVideo(percent, "zeros").seen(f"clip{number}", frames) for number in range(200)]
    assert {int((~one).sum()) for one in found} == {expected} and {one.shape for one in found} == {(frames,)}
    if expected < frames / 2:  # where spans hardly meet
        sizes = np.concatenate([pieces(one) for one in found])
        least = min(10, expected)
        assert np.mean(sizes < least) < 0.5  # what is left for the last one is shorter
        assert np.median(sizes) == pytest.approx(min(30, expected), abs=8)
        ends = np.stack(found)[:, [0, -1]]
        assert not ends.all(0).any() or expected == 1


def test_spans_lie_anywhere():
    lost = np.mean([~LostVideo(30, "zeros").seen(f"clip{number}", 100) for number in range(3000)], 0)
    assert lost.mean() == pytest.approx(0.3) and lost.min() > 0.01  # less at the ends, which fewer spans reach
    assert np.abs(lost - lost[::-1]).max() < 0.06


def test_what_is_lost_follows_from_id_and_seed():
    same = [LostVideo(25, policy, 3).seen("a", 100) for policy in ("zeros", "held")]
    assert np.array_equal(*same)
    assert not np.array_equal(same[0], LostVideo(25, "zeros", 4).seen("a", 100))
    assert not np.array_equal(same[0], LostVideo(25, "zeros", 3).seen("b", 100))


def test_zeros_leave_the_pictures_to_the_encoder():
    frames = np.random.default_rng(0).integers(0, 255, (60, 4, 4)).astype(np.uint8)
    pictures, seen = LostVideo(50, "zeros").lose("a", frames)
    assert pictures is frames and np.array_equal(seen, LostVideo(50, "zeros").seen("a", 60))


def test_held_pictures_are_the_last_that_were_seen():
    frames, beginnings = np.arange(60).astype(np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8), 0
    for number in range(100):
        lost = LostVideo(60, "held")
        pictures, seen = lost.lose(f"clip{number}", frames)
        assert seen.all()
        really, last = lost.seen(f"clip{number}", 60), None
        for place, one in enumerate(pictures[:, 0, 0]):
            last = place if really[place] else last
            assert one == (last if last is not None else really.argmax())
        beginnings += not really[0]
    assert beginnings
    _, seen = LostVideo(100, "held").lose("a", frames)
    assert not seen.any(), "there is no picture to hold"


@pytest.mark.parametrize("name, rest, percent, policy", [
    ("av_lost25", "av_clean", 25, "zeros"), ("video_lost50held", "video_clean", 50, "held"),
    ("av_babble_0db_lost12.5", "av_babble_0db", 12.5, "zeros"), ("/a/b/av_lost5", "/a/b/av_clean", 5, "zeros"),
    ("gs://b/av_wild_lost100", "gs://b/av_wild", 100, "zeros"),
    ("av_snr_-5_interferer_1_lost25", "av_snr_-5_interferer_1", 25, "zeros"),
])  # fmt: skip
def test_names_tell_what_is_lost(name, rest, percent, policy):
    assert split_name(name) == (rest, LostVideo(percent, policy))
    assert name.endswith(f"_{LostVideo(percent, policy).suffix}")


@pytest.mark.parametrize("name", ["av", "av_lost", "av_lost0", "av_lost101", "audio_lost25", "lost25", "av_lost25x"])
def test_names_of_other_sets(name):
    assert split_name(name) == (name, None)


def test_a_share_is_what_its_name_tells():
    for share in np.random.default_rng(0).uniform(0.01, 1, 1000):
        lost = lost_share(float(share), "held", 0)
        assert split_name(f"av_{lost.suffix}") == ("av_clean", lost)
    assert lost_share(0.25, "zeros", 7) == LostVideo(25, "zeros", 7)
