"""A grammar of everyday Vietnamese: time, subject, aspect, verb, number, object, adjective, company, place.

Every sentence has 6 to 10 syllables, lower-case and unpunctuated as VASR transcripts are. Which split a
sentence belongs to follows from a hash of the sentence alone, so the splits share no sentence whatever the
seed and the counts.
"""

import random
import unicodedata
import zlib
from typing import NamedTuple

SPLITS = ("pretrain", "train", "valid", "test")
MIN_SYLLABLES, MAX_SYLLABLES = 6, 10

# Hash bucket (of ten) -> split. Pre-training and training need the most distinct sentences.
_SPLIT_OF_BUCKET = ("pretrain",) * 4 + ("train",) * 4 + ("valid", "test")

# Tense -> (times, aspect markers that go with it).
_TENSES = {
    "past": (("hôm qua", "tối qua", "tuần trước", "năm ngoái"), ("đã", "vừa", "đã")),
    "present": (("bây giờ", "hôm nay", "sáng nay"), ("đang", "vẫn", "cũng")),
    "future": (("ngày mai", "chiều mai", "tuần sau", "cuối tháng"), ("sẽ", "muốn", "phải")),
}

_SUBJECTS = (
    "tôi", "anh ấy", "chị ấy", "mẹ tôi", "bố tôi", "bà ngoại", "ông nội", "cô giáo", "thầy giáo",
    "em gái", "em trai", "bác sĩ", "bạn tôi", "chúng tôi", "chú tư", "dì hoa",
)  # fmt: skip

_NUMBERS = ("một", "hai", "ba", "bốn", "năm", "sáu", "bảy", "tám", "chín", "mười", "mấy", "nhiều")


class _Object(NamedTuple):
    classifier: str
    noun: str
    adjectives: tuple[str, ...]


_BOOK = _Object("quyển", "sách", ("mới", "cũ", "hay", "dày"))
_STORY = _Object("quyển", "truyện", ("mới", "hay", "ngắn", "buồn"))
_PAPER = _Object("tờ", "báo", ("mới", "cũ"))
_LETTER = _Object("lá", "thư", ("dài", "ngắn", "buồn", "vui"))
_SONG = _Object("bài", "hát", ("mới", "hay", "buồn", "vui"))
_FILM = _Object("bộ", "phim", ("mới", "hay", "ngắn", "dài"))
_SHIRT = _Object("cái", "áo", ("mới", "đẹp", "đỏ", "xanh", "trắng"))
_TABLE = _Object("cái", "bàn", ("mới", "cũ", "to", "nhỏ"))
_HAT = _Object("cái", "mũ", ("mới", "đẹp", "đen", "trắng"))
_FLOWER = _Object("bông", "hoa", ("đẹp", "đỏ", "thơm", "trắng"))
_FISH = _Object("con", "cá", ("tươi", "to", "ngon"))
_CHICKEN = _Object("con", "gà", ("to", "béo", "nhỏ"))
_ORANGE = _Object("quả", "cam", ("ngọt", "to", "ngon"))
_MANGO = _Object("quả", "xoài", ("chín", "xanh", "thơm", "ngọt"))
_NOODLES = _Object("bát", "phở", ("nóng", "ngon", "to"))
_RICE = _Object("bát", "cơm", ("trắng", "nóng", "ngon"))
_SOUP = _Object("bát", "canh", ("nóng", "chua", "ngon"))
_WATER = _Object("cốc", "nước", ("mát", "nóng", "đầy"))
_MILK = _Object("cốc", "sữa", ("tươi", "nóng", "ngọt"))
_TEA = _Object("ly", "trà", ("xanh", "nóng", "thơm"))
_COFFEE = _Object("ly", "cà phê", ("đen", "nóng", "thơm"))

_READ = (_BOOK, _STORY, _PAPER, _LETTER)
_FOOD = (_FISH, _CHICKEN, _NOODLES, _RICE, _SOUP)
_FRUIT = (_ORANGE, _MANGO)
_DRINK = (_WATER, _MILK, _TEA, _COFFEE)
_GOODS = (_BOOK, _SHIRT, _TABLE, _HAT, _FLOWER, _FISH, _CHICKEN)

_VERBS = (
    ("mua", _GOODS + _FRUIT), ("bán", _GOODS + _FRUIT), ("tìm", _GOODS), ("vẽ", _GOODS + _FRUIT),
    ("đọc", _READ), ("viết", _READ), ("ăn", _FOOD + _FRUIT), ("nấu", _FOOD), ("uống", _DRINK),
    ("gọi", _DRINK + (_NOODLES, _RICE)), ("xem", (_FILM,)), ("nghe", (_SONG,)), ("chọn", _GOODS + _FRUIT),
)  # fmt: skip

_COMPANY = ("với bạn", "với con", "với hàng xóm", "một mình", "rất nhanh", "rất chậm")
_PLACES = (
    "ở nhà", "ở chợ", "ở quê", "ở trường", "ở cửa hàng", "ở hà nội", "ở sài gòn", "ở đà nẵng", "ở huế",
    "trong bếp", "trong vườn", "trên phố", "gần hồ",
)  # fmt: skip


def split_of(sentence: str) -> str:
    """The one split that `sentence` belongs to, from the CRC-32 of its UTF-8 bytes."""
    return _SPLIT_OF_BUCKET[zlib.crc32(sentence.encode()) % len(_SPLIT_OF_BUCKET)]


def _draw_sentence(rng: random.Random) -> str:
    """One derivation of the grammar, of any length and split."""
    times, aspects = _TENSES[rng.choice(tuple(_TENSES))]
    verb, objects = rng.choice(_VERBS)
    chosen = rng.choice(objects)
    counted = rng.random() < 0.5
    slots = (
        rng.choice(times) if rng.random() < 0.7 else "",
        rng.choice(_SUBJECTS),
        rng.choice(aspects),
        verb,
        f"{rng.choice(_NUMBERS)} {chosen.classifier}" if counted else "",
        chosen.noun,
        rng.choice(chosen.adjectives) if rng.random() < 0.6 else "",
        rng.choice(_COMPANY) if rng.random() < 0.35 else "",
        rng.choice(_PLACES) if rng.random() < 0.6 else "",
    )
    return unicodedata.normalize("NFC", " ".join(slot for slot in slots if slot))


def sample_sentences(seed: int, count: int, split: str) -> list[str]:
    """`count` distinct sentences of `split` (one of SPLITS), the same for the same seed.

    Raises ValueError for another split.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
    rng = random.Random(f"sentences/{split}/{seed}")
    found: dict[str, None] = {}
    while len(found) < count:
        sentence = _draw_sentence(rng)
        if MIN_SYLLABLES <= len(sentence.split()) <= MAX_SYLLABLES and split_of(sentence) == split:
            found[sentence] = None
    return list(found)
