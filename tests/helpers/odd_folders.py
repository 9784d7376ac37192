"""Names that folders may have: patterns, fields, options, addresses and quotes to somebody, and letters."""

ODD = "a [2] {b} 100% 'c' \"d\" #e &f $HOME *? đ"
ODD_NAMES = [
    "run [2]",
    "[!a]",
    "[a-z]",
    "a*b",
    "**",
    "q?",
    "{a,b}",
    "50%d",
    "ti\u1ebfng",
    "ti\u00ea\u0301ng",
    "a\tb\nc",
    ODD,
]
