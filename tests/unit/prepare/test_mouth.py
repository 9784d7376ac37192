"""Mouth crops: known geometry is undone, and on real recordings the mouth of the speaker is where it should be."""

import cv2
import numpy as np
import pytest
from real_videos import CARTOON, CUT, PHONE, SPEECH, first, write_video, write_wav

from viavsp_jax.data import media
from viavsp_jax.prepare.recordings import mouth
from viavsp_jax.prepare.recordings.faces import Face, FaceFinder
from viavsp_jax.prepare.recordings.mouth_clips import write_video as write_crops
from viavsp_jax.prepare.recordings.recording import read_recording
from viavsp_jax.prepare.recordings.tracks import Speaker, choose, fill, follow, loudness
from viavsp_jax.runtime.errors import InputError

RNG = np.random.default_rng(0)
MEAN_FACE = RNG.uniform(60, 190, (68, 2))


def moved(points: np.ndarray, scale: float, angle: float, shift: tuple[float, float]) -> np.ndarray:
    """Points [..., 2] turned by so many degrees (clockwise, as y points down), scaled and shifted."""
    turn = np.radians(angle)
    return scale * points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) + shift


def smooth_picture(height: int, width: int) -> np.ndarray:
    grey = cv2.GaussianBlur(RNG.integers(0, 255, (height, width)).astype(np.float32), (0, 0), 4)
    return np.uint8(255 * (grey - grey.min()) / np.ptp(grey))


@pytest.mark.parametrize(("scale", "angle", "shift"), [(1, 0, (0, 0)), (0.4, 25, (300, -40)), (3.7, -160, (-8, 900))])
def test_turned_scaled_and_shifted_faces_are_aligned(scale, angle, shift):
    landmarks = np.tile(moved(MEAN_FACE, scale, angle, shift), (5, 1, 1)).astype(np.float32)
    transforms = mouth.align(landmarks, mean_face=MEAN_FACE)
    for point in range(68):
        back = mouth.apply(transforms, landmarks[:, point])
        np.testing.assert_allclose(back, np.tile(MEAN_FACE[point], (5, 1)), atol=1e-3)


def test_the_transform_has_the_least_squares():
    source = RNG.uniform(0, 300, (1, 68, 2))
    ((a, b),) = mouth.align(source, mean_face=MEAN_FACE)
    x, y = source[0, mouth.STABLE_POINTS].T
    zero, one = np.zeros(5), np.ones(5)
    equations = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
    expected, *_ = np.linalg.lstsq(equations, MEAN_FACE[mouth.STABLE_POINTS].T.ravel(), rcond=None)
    np.testing.assert_allclose([a.real, a.imag, b.real, b.imag], expected)


def test_landmarks_are_averaged_over_twelve_pictures_but_not_over_cuts():
    landmarks = RNG.uniform(0, 300, (45, 68, 2))
    got = mouth.align(landmarks, [0, 20, 25], MEAN_FACE)
    for start, end in ((0, 20), (20, 25), (25, 45)):
        for index in range(start, end):
            first = max(start, min(index, end - 12))
            mean = landmarks[first : min(first + 12, end)].mean(0, keepdims=True)
            np.testing.assert_allclose(got[index], mouth.align(mean, mean_face=MEAN_FACE)[0])


@pytest.mark.parametrize(("scale", "angle"), [(1, 0), (0.5, 30), (1.7, -75), (3.3, 200)])
def test_the_crop_shows_the_face_as_in_the_mean_face(scale, angle):
    """A picture of a mean face is turned and scaled; its crop is cut from the original picture. Large faces, too."""
    canvas = smooth_picture(256, 256)
    middle = moved(np.array([128.0, 128.0]), scale, angle, (0, 0))
    shift = np.array([450.0, 430.0]) - middle
    corners = np.float32([[0, 0], [255, 0], [0, 255]])
    matrix = cv2.getAffineTransform(corners, np.float32(moved(corners, scale, angle, shift)))
    picture = cv2.warpAffine(canvas, matrix, (900, 860), flags=cv2.INTER_CUBIC)
    landmarks = moved(MEAN_FACE, scale, angle, shift)[None]
    transforms = mouth.align(landmarks, mean_face=MEAN_FACE)
    center = np.rint(mouth.apply(transforms, landmarks[:, mouth.MOUTH].mean(1)))
    got = mouth.cut(picture, transforms[0], center[0])
    left, top = (center[0] - 48).astype(int)
    error = np.abs(got.astype(int) - canvas[top : top + 96, left : left + 96])
    assert error.mean() < (4 if scale < 1 else 1.5) and canvas.std() > 30
    # The box around it in the picture has the corners of the crop.
    ((x, y, side, turned),) = mouth._boxes(transforms, center)
    box = cv2.boxPoints(((float(x), float(y)), (float(side), float(side)), float(turned)))
    edges = [[left + dx - 0.5, top + dy - 0.5] for dx in (0, 96) for dy in (0, 96)]
    for edge in moved(np.array(edges), scale, angle, shift):
        assert np.linalg.norm(box - edge, axis=1).min() < 0.01


@pytest.mark.parametrize("center", [(0, 0), (199, 99), (-30, 50), (-500, 5000)])
def test_outside_the_picture_it_is_black(center):
    picture = RNG.integers(1, 255, (100, 200)).astype(np.uint8)
    got = mouth.cut(picture, np.array([1, 0j]), np.array(center))
    padded = np.pad(picture, 48)[max(0, center[1]) :, max(0, center[0]) :][:96, :96]
    assert got.shape == (96, 96) and got.dtype == np.uint8
    if min(center) >= 0:
        np.testing.assert_array_equal(got, padded)
    elif center[0] == -30:
        assert not got[:, :78].any() and got[:, 78:].all()
    else:
        assert not got.any()


def test_our_own_mean_face_fits_real_ones(speech):
    """The distances between its points are those of the speaker, on average; the mouth is 58 pixels wide."""
    speaker = speech[0]
    transforms = mouth.align(speaker.landmarks, speaker.starts)
    points = np.stack([mouth.apply(transforms, speaker.landmarks[:, index]) for index in range(68)], 1).mean(0)
    assert np.abs(points[mouth.STABLE_POINTS] - mouth._stable_face()).max() < 7  # one person, who turns
    assert np.linalg.norm(points[45] - points[36]) == pytest.approx(90, abs=3)
    assert np.linalg.norm(points[54] - points[48]) == pytest.approx(58, abs=3)


def test_a_mean_face_can_be_given(tmp_path):
    np.save(tmp_path / "face.npy", MEAN_FACE.astype(np.float32))
    np.testing.assert_allclose(mouth.load_mean_face(tmp_path / "face.npy"), MEAN_FACE, rtol=1e-6)
    np.save(tmp_path / "few.npy", MEAN_FACE[:51])
    np.save(tmp_path / "pickled.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "nan.npy", MEAN_FACE * np.nan)
    (tmp_path / "text.npy").write_text("words")
    for name in ("few", "pickled", "nan", "text", "missing"):
        with pytest.raises(InputError, match=f"{name}.npy: .*expected .*points"):
            mouth.load_mean_face(tmp_path / f"{name}.npy")


@pytest.fixture(scope="module")
def speech():
    """Where the speaker is in the recording with two faces, the recording, and what was told of the progress."""
    recording, shares = read_recording(SPEECH), []
    speaker = mouth._find_speaker(recording, shares.append)
    return speaker, recording, shares


def test_the_speaker_in_front_is_chosen_with_and_without_sound(speech):
    speaker, recording, shares = speech
    assert speaker.found.all() and speaker.starts == [0] and len(speaker.found) == 219
    assert (speaker.landmarks[:, :, 0] > 160).all()  # the silent face is on the left
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == pytest.approx(0.9) and len(shares) > 5


def test_the_mouth_is_in_the_middle_upright_and_of_one_size(speech):
    """Landmarks are predicted anew in the aligned faces, which were neither smoothed nor interpolated."""
    speaker, recording, _ = speech
    transforms = mouth.align(speaker.landmarks, speaker.starts)
    centers = np.rint(mouth.apply(transforms, speaker.landmarks[:, mouth.MOUTH].mean(1)))
    aligned = []
    for frame, (a, b) in list(zip(recording.frames(), transforms, strict=True))[::6]:
        matrix = np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])
        aligned.append(cv2.warpAffine(frame, matrix, (256, 256)))
    found = [faces for _, faces in FaceFinder().faces(aligned)]
    assert all(len(faces) == 1 for faces in found)
    mouths = np.stack([faces[0].landmarks[mouth.MOUTH] for faces in found])
    offsets = np.linalg.norm(mouths.mean(1) - centers[::6], axis=1)
    assert (offsets <= 10).mean() >= 0.95 and np.median(offsets) < 2
    across = mouths[:, 6] - mouths[:, 0]
    angles = np.degrees(np.arctan2(across[:, 1], across[:, 0]))
    widths = np.linalg.norm(across, axis=1)
    assert abs(angles.mean()) < 4 and np.abs(angles).max() < 12
    assert 50 < np.percentile(widths, 10) and np.percentile(widths, 90) < 68


def test_crops_and_boxes_belong_together():
    """The crop is what the picture shows in the box."""
    shares = []
    track = mouth.mouth_crops(read_recording(PHONE), progress=shares.append)
    assert track.crops.shape == (100, 96, 96) and track.crops.dtype == np.uint8
    assert track.found.mean() >= 0.95 and track.boxes.dtype == np.float32 and shares[-1] == 1
    for frame, crop, (x, y, side, angle) in zip(read_recording(PHONE).frames(), track.crops, track.boxes, strict=True):
        matrix = cv2.getRotationMatrix2D((float(x), float(y)), float(angle), 96 / float(side))
        matrix[:, 2] += 47.5 - np.array([x, y])
        expected = cv2.warpAffine(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), matrix, (96, 96))
        assert np.abs(crop.astype(int) - expected).max() < 12 and crop.std() > 5


def speaking(pictures) -> Speaker:
    tracks, shots, count = follow(FaceFinder().faces(pictures))
    return fill(choose(tracks, None), shots, count)


def test_a_larger_face_that_is_silent_is_not_chosen(speech):
    """The speaker, and to the left the same face, larger, which does not move."""
    _, recording, _ = speech
    frames = [frame[:110, 160:280] for frame in first(SPEECH, 60)]
    silent = cv2.resize(frames[40], None, fx=1.5, fy=1.5)
    pictures = np.full((len(frames), 200, 300, 3), 128, np.uint8)
    pictures[:, : silent.shape[0], : silent.shape[1]] = silent
    pictures[:, 80:190, 180:] = frames
    tracks, _, count = follow(FaceFinder().faces(pictures))
    assert [len(track.indices) for track in tracks] == [60, 60]
    for loud in (None, loudness(recording.samples, count)):
        (chosen,) = choose(tracks, loud)
        assert (chosen.landmarks()[:, :, 0] > 180).all()


def face_at(x: float, size: float, opening: float) -> Face:
    """A face that opens its mouth so far, in shares of its width."""
    landmarks = np.zeros((68, 2), np.float32)
    landmarks[[36, 45]] = [[0.1, 0.2], [0.9, 0.2]]
    landmarks[mouth.MOUTH] = [0.5, 0.8]
    landmarks[[65, 66, 67]] += [0, opening]
    box = np.float32([x, 0, x + size, size])
    return Face(box, landmarks * size + [x, 0])


def test_the_face_that_moves_with_the_sound_is_chosen():
    """Both move alike, but one of them when it is quiet; without sound, or when both fit it, the larger one counts."""
    count = 100
    talk = (np.arange(count) // 10) % 2
    samples = np.repeat(talk * 8000, 640).astype(np.int16) * np.tile([1, -1], count * 320).astype(np.int16)
    openings = 0.1 * talk + 0.02 * np.sin(np.arange(count))
    for other, heard, expected in (
        (0.1 * (1 - talk), True, 0),
        (0.1 * (1 - talk), False, 500),
        (0.1 * talk, True, 500),
    ):
        found = [(t == 0, [face_at(0, 50, openings[t]), face_at(500, 100, other[t])]) for t in range(count)]
        tracks, shots, _ = follow(found)
        (chosen,) = choose(tracks, loudness(samples, count) if heard else None)
        assert chosen.faces[0].box[0] == expected


def test_missed_faces_are_interpolated_and_cuts_are_not(speech):
    """45 pictures of one person, hidden in 6 and in 14 of them; 15 without anyone; 20 of another person."""
    whole, _, _ = speech
    pictures = [frame.copy() for frame in first(SPEECH, 45)]
    for picture in pictures[6:12] + pictures[22:36]:
        picture[:130, 150:260] = 100
    for path, count in ((CUT, 15), (PHONE, 20)):
        pictures += [cv2.resize(frame, (320, 240)) for frame in first(path, count)]
    speaker = speaking(pictures)
    # Missed for a moment, it is where it was.
    assert speaker.found[:22].all() and not speaker.found[22:36].any() and speaker.found[36:45].all()
    assert not speaker.found[45:60].any() and speaker.found[60:].all()
    assert speaker.starts == [0, 60]
    expected = whole.landmarks[:45]
    distances = np.linalg.norm(speaker.landmarks[:45] - expected, axis=2).mean(1)
    assert (distances < 0.2 * np.linalg.norm(expected[:, 45] - expected[:, 36], axis=1)).all()
    np.testing.assert_array_equal(speaker.landmarks[45:60], np.tile(speaker.landmarks[44], (15, 1, 1)))
    # Nothing of the first face is in the transforms of the second.
    got = mouth.align(speaker.landmarks, speaker.starts)
    np.testing.assert_allclose(got[60:], mouth.align(speaker.landmarks[60:]))


def test_a_mouth_video_is_taken_as_it_is(tmp_path):
    write_crops(str(tmp_path / "mouth.mp4"), RNG.integers(0, 255, (12, 96, 96)).astype(np.uint8))
    track = mouth.mouth_crops(read_recording(tmp_path / "mouth.mp4"))
    np.testing.assert_array_equal(track.crops, media.read_video(tmp_path / "mouth.mp4"))
    assert track.found.all() and track.boxes.tolist() == [[47.5, 47.5, 96, 0]] * 12
    colour = [RNG.integers(0, 255, (12, 12, 3), np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(9)]
    for codec in ("libx264", "mpeg4"):
        path = write_video(tmp_path / f"{codec}.mp4", colour, codec=codec)
        np.testing.assert_array_equal(mouth.mouth_crops(read_recording(path)).crops, media.read_video(path))


def test_without_a_face_it_says_what_to_do(tmp_path):
    nobody = write_video(tmp_path / "nobody.mkv", first(CUT, 20))
    for least in (0.5, 0):
        message = r"nobody.mkv: no face is seen in it, .* 40 pixels high .* are 640x360\); .*modality audio"
        with pytest.raises(InputError, match=message):
            mouth.mouth_crops(read_recording(nobody), least_found=least)
    cartoon = write_video(tmp_path / "cartoon.mkv", first(CARTOON, 10))
    with pytest.raises(InputError, match=r"cartoon.mkv: .*modality audio"):
        mouth.mouth_crops(read_recording(cartoon))
    mostly = first(SPEECH, 20) + [np.zeros((240, 320, 3), np.uint8)] * 30
    path = write_video(tmp_path / "mostly.mkv", mostly)
    message = r"mostly.mkv: a face is seen in only 40 % of its pictures, .* in at least 50 % \(.* 320x240\)"
    with pytest.raises(InputError, match=message):
        mouth.mouth_crops(read_recording(path))
    track = mouth.mouth_crops(read_recording(path), least_found=0)
    assert track.found.tolist() == [True] * 20 + [False] * 30 and len(track.crops) == len(track.boxes) == 50
    sound = write_wav(tmp_path / "sound.wav", RNG.integers(-99, 99, 999).astype(np.int16))
    with pytest.raises(InputError, match=r"sound.wav: has sound only"):
        mouth.mouth_crops(read_recording(sound))
