"""What a file is that is neither text nor sound, told by its first bytes."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

ENOUGH = 1024  # bytes


@dataclass(frozen=True)
class Kind:
    """What it is called, and the command that makes text or sound of it, if there is one."""

    name: str
    command: str | None = None

    @property
    def is_picture(self) -> bool:
        """Whether Pillow reads it."""
        return self.name.endswith("picture")


FFMPEG = "ffmpeg -i {} -vn -ac 1 -ar 16000 sound.wav"
OFFICE = "libreoffice --convert-to txt:Text:UTF8 {}"
BEGINNINGS: dict[bytes, Kind] = {
    b"\x89PNG": Kind("a PNG picture"),
    b"\xff\xd8\xff": Kind("a JPEG picture"),
    b"GIF87a": Kind("a GIF picture"),
    b"GIF89a": Kind("a GIF picture"),
    b"II*\0": Kind("a TIFF picture"),
    b"MM\0*": Kind("a TIFF picture"),
    b"%!PS": Kind("PostScript", "ps2ascii {} > text.txt"),
    b"{\\rtf": Kind("rich text (RTF)", OFFICE),
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": Kind("an old Office document", OFFICE),
    b"BZh91AY&SY": Kind("packed by bzip2", "bunzip2 --keep {}"),
    b"\xfd7zXZ\0": Kind("packed by xz", "unxz --keep {}"),
    b"\x28\xb5\x2f\xfd": Kind("packed by zstd", "unzstd {}"),
    b"7z\xbc\xaf\x27\x1c": Kind("a 7z archive", "7z x {}"),
    b"Rar!\x1a\x07": Kind("a RAR archive", "unrar x {}"),
    b"\x7fELF": Kind("a program"),
    b"SQLite format 3\0": Kind("a database of SQLite"),
    b"\x93NUMPY": Kind("an array of NumPy"),
    b"GGUF\3\0": Kind("a model's weights (GGUF)"),
    b"\x1aE\xdf\xa3": Kind("a Matroska or WebM video", FFMPEG),
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": Kind("Windows Media", FFMPEG),
    b"#!AMR": Kind("sound in AMR", FFMPEG),
    b"\xff\xf1": Kind("sound in AAC", FFMPEG),
    b"\xff\xf9": Kind("sound in AAC", FFMPEG),
}
# Inside a zip archive: a name near its beginning.
ZIPPED: dict[bytes, Kind] = {
    b"word/": Kind("a Word document (docx)", OFFICE),
    b"xl/": Kind("an Excel table (xlsx)"),
    b"ppt/": Kind("a PowerPoint presentation (pptx)"),
    b"application/epub+zip": Kind("an e-book (EPUB)", "pandoc -t plain -o text.txt {}"),
    b"application/vnd.oasis.opendocument": Kind("an OpenDocument file", OFFICE),
    b"data.pkl": Kind("a model's weights (PyTorch)"),
    b"[Content_Types].xml": Kind("an Office document", OFFICE),
}
RIFF = {b"AVI ": Kind("an AVI video", FFMPEG), b"WEBP": Kind("a WebP picture")}


def kind_of(raw: bytes) -> Kind | None:
    """From the first bytes, best some thousands; None if they are none of these."""
    if raw[:ENOUGH].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"%PDF-"):
        return Kind("a PDF", "pdftotext {} text.txt")
    if raw.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        near = (kind for name, kind in ZIPPED.items() if name in raw[: 4 * ENOUGH])
        return next(near, Kind("a zip archive", "unzip {}"))
    if raw[:4] == b"RIFF":
        return RIFF.get(raw[8:12])
    if raw[:1] == b"\0" and raw[4:8] == b"ftyp":
        return Kind("an MPEG-4 file (mp4, m4a)", FFMPEG)
    if raw[257:263] in (b"ustar\0", b"ustar "):
        return Kind("a tar archive", "tar -xf {}")
    return next((kind for begins, kind in BEGINNINGS.items() if raw.startswith(begins)), None)


def refusal(path: Path, kind: Kind) -> str:
    """What is wrong with the file as input, and what to do."""
    says = f"{path}: is {kind.name}; smyrf reads plain text (UTF-8, also in gzip), sound and images"
    if kind.command is None:
        return says
    return f"{says}. Type: {kind.command.format(shlex.quote(str(path)))}"
