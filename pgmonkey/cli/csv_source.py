"""Read a CSV file as the server gets it: UTF-8, in blocks that end where a line ends.

The server splits the text into rows and fields. What is done here is what it would not notice: a
quote in the middle of a field, which it drops; a line that ends the data early for PostgreSQL up to
17. And what it cannot know: which line of the file a row of it is.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, Self

from pgmonkey.cli.csv_format import STANDARD, CsvError, CsvFormat

OTHER_ENCODING: Final = "if the file has another encoding, name it: --encoding cp1252, for instance"
_BLOCK: Final = 256 * 1024  # bytes
#: The most for the first row, and for the empty lines before it.
_LONGEST_ROW: Final = 2**20  # bytes
# UTF-32 before UTF-16: its mark starts with that of UTF-16.
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
#: Encodings whose files may be read as UTF-8, once a byte order mark is removed.
_UTF_8: Final = ("utf-8", "utf-8-sig", "ascii")
#: An empty line after another line, for each end of line: one pattern for both is much slower.
_EMPTY_LINE: Final = {b"\n": re.compile(rb"\n\r?\n"), b"\r": re.compile(rb"\r\r")}
#: The end of the first line. A carriage return counts only if the next byte is there: it may be a line feed.
_LINE_END: Final = re.compile(rb"\r\n|\n|\r(?=.)", re.DOTALL)
#: PostgreSQL up to 17 takes a line with nothing else for the end of the data.
_END_OF_DATA: Final = b"\\."


def encoding_of_mark(start: bytes) -> str | None:
    """Return the encoding of the byte order mark at the start of a file, if there is one.

    Example:
        >>> encoding_of_mark("é".encode("utf-8-sig"))
        'utf-8'
    """
    return next((name for mark, name in _MARKS if start.startswith(mark)), None)


class CsvSource:
    """Read a CSV file once, from its start to its end, with memory for one block and one line.

    Args:
        path: The file; `-` for standard input.
        form: How it is written.

    Raises:
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, form: CsvFormat) -> None:
        self.name = "standard input" if path == STANDARD else str(path)
        self._path = path
        self._form = form
        self._file: BinaryIO = sys.stdin.buffer if path == STANDARD else path.open("rb")
        about = os.fstat(self._file.fileno())
        #: Whether it can be read a second time.
        self.regular = stat.S_ISREG(about.st_mode) and path != STANDARD
        #: Its size in bytes; `None` if that is not known.
        self.size = about.st_size if self.regular else None
        #: How many bytes of it were read.
        self.read = 0
        self._quote = form.quote.encode()
        self._delimiter = form.delimiter.encode()
        # A quote may stand at the edge of a field, or beside another quote, and nowhere else.
        edges = re.escape(self._delimiter + self._quote + b"\r\n")
        self._misplaced = re.compile(
            b"%(quote)s(?:(?P<opening>(?<![%(edges)s]%(quote)s)(?<!\\A%(quote)s))"
            b"|(?P<closing>(?![%(edges)s]|\\Z)))"
            % {b"quote": re.escape(self._quote), b"edges": edges}
        )
        self._eol = b"\n"
        #: How many lines of the file were read.
        self._lines = self._lines_before_data = 0
        self._inside = False
        self._opened = 0  # the line of the quote that is open
        self._pieces: Iterator[bytes] = self._in_whole_lines()
        if not form.quotes:
            self._pieces = self._without_quotes(self._pieces)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._path != STANDARD:
            self._file.close()

    def header(self) -> list[str]:
        """Read the first row, without the empty ones before it, and return its fields."""
        _, row = self._first_row(b"\r\n" + self._delimiter)
        if not row:
            raise CsvError(f"{self.name}: there is no row in it")
        self._lines_before_data = self._lines
        return self._fields(row)

    def width(self) -> int:
        """Return the number of fields of the first row that is not empty, and leave the row to be read."""
        before, row = self._first_row(b"\r\n")
        self._lines = 0
        self._push(before + row)
        # Not those of `csv`: it takes no field of more than 128 KiB.
        outside, _ = self._outside(row)
        return outside.count(self._delimiter) + 1

    def data(self, columns: int) -> Iterator[tuple[bytes, int]]:
        """Yield the rest of the file in parts, each with the number of rows that end in it.

        Empty lines are skipped, except in a file of one column: there they are NULL.

        Args:
            columns: How many there are.

        Raises:
            CsvError: a quote is where none may be, or the last one is missing.
        """
        for piece in self._pieces:
            outside, inside = self._outside(piece)
            ends = self._count(outside)
            mended = self._mended(piece, outside, columns)
            if inside and self._quote in piece:
                self._opened = self._lines + self._count(piece[: piece.rindex(self._quote)]) + 1
            self._lines += self._count(piece)
            self._inside = inside
            yield mended, ends
        if self._inside:
            raise self.error(self._opened, "a quote is opened here and never closed")

    def place(self, number: int, columns: int) -> tuple[int, int | None]:
        """Return the line where a row starts, and the number of the row, from a line of the server.

        This reads the file again. A pipe cannot be read again: then it returns the server's line,
        which is another one if fields have line breaks, or if empty lines were skipped.

        Args:
            number: A line as the server counts them.
            columns: How many columns there are.
        """
        if not self.regular:
            return self._lines_before_data + number, None
        with CsvSource(self._path, self._form) as again:
            if self._form.has_headers:
                again.header()
            return again.find(number, columns)

    def find(self, number: int, columns: int) -> tuple[int, int]:
        """Read on to the row that `place` asks for; return the line where it starts, and its number.

        The server counts each row, and line breaks in fields, but only those of one kind: carriage
        returns in the first row; later carriage returns if the first row ended with one, else line
        feeds.
        """
        counted = row = 0
        embedded = b"\r"
        line = first = self._lines + 1
        record: list[bytes] = []
        for piece in self._pieces:
            for text in self._split(piece):
                line += 1
                if not record and self._is_blank(text, columns):
                    continue
                if not record:
                    first, row = line - 1, row + 1
                record.append(text)
                self._inside ^= text.count(self._quote) % 2 == 1
                if self._inside:
                    continue
                counted += 1 + b"".join(record).rstrip(b"\r\n").count(embedded)
                if counted >= number:
                    return first, row
                if row == 1:
                    embedded = b"\r" if text.endswith((b"\r\n", b"\r")) else b"\n"
                record.clear()
        return first, row

    def error(self, line: int, message: str) -> CsvError:
        """Return the error of a line."""
        return CsvError(f"{self.name}:{line}: {message}")

    def _first_row(self, empty: bytes) -> tuple[bytes, bytes]:
        """Return the lines before the first row, which have only these characters, and the row."""
        before: list[bytes] = []
        row: list[bytes] = []
        inside = False
        for piece in self._pieces:
            texts = self._split(piece)
            for number, text in enumerate(texts):
                if not row and not text.strip(empty):
                    before.append(text)
                    self._lines += 1
                    continue
                row.append(text)
                inside ^= text.count(self._quote) % 2 == 1
                if not inside:
                    self._push(b"".join(texts[number + 1 :]))
                    found = b"".join(row)
                    self._outside(found)
                    self._lines += self._count(found)
                    return b"".join(before), found
            if sum(map(len, row)) > _LONGEST_ROW or sum(map(len, before)) > _LONGEST_ROW:
                break
        if row:
            message = "a quote is opened in this row and never closed"
            if sum(map(len, row)) > _LONGEST_ROW:
                message = "a quote is opened in this row and not closed within 1 MiB"
            raise self.error(self._lines + 1, message)
        return b"".join(before), b""

    def _push(self, text: bytes) -> None:
        """Put text in front of the rest of the file."""
        if text:
            self._pieces = itertools.chain((text,), self._pieces)

    def _fields(self, row: bytes) -> list[str]:
        """Return the fields of a row that was read just now."""
        line = self._lines - self._count(row) + 1
        try:
            text = row.decode()
        except UnicodeDecodeError:
            message = f"the file is not UTF-8\n  hint: {OTHER_ENCODING}"
            raise self.error(line, message) from None
        reader = csv.reader(
            io.StringIO(text, newline=""),
            delimiter=self._form.delimiter,
            quotechar=self._form.quote,
            quoting=csv.QUOTE_MINIMAL if self._form.quotes else csv.QUOTE_NONE,
        )
        try:
            return next(reader, [])
        except csv.Error as error:
            raise self.error(line, str(error)) from None

    def _outside(self, piece: bytes) -> tuple[bytes, bool]:
        """Return a part without its quoted texts, and whether it ends inside quotes.

        One quote takes the place of each quoted text.

        Raises:
            CsvError: a quote is in the middle of a field.
        """
        quote = self._quote
        parts = piece.split(quote)
        inside = self._inside ^ (len(parts) % 2 == 0)
        outside = quote * self._inside + quote.join(parts[self._inside :: 2]) + quote * inside
        wrong = self._misplaced.search(outside)
        if wrong is not None:
            number = outside.count(quote, 0, wrong.start())
            behind = 2 * number + (not self._inside) + (wrong.lastgroup == "closing")
            before = parts[:behind]
            line = self._lines + 1 + self._count(quote.join(before))
            shown = self._form.quotechar
            raise self.error(
                line,
                f"a {shown} in the middle of a field\n  hint: put {shown} around the whole field and"
                f" double those in it; or give --quotechar none, if {shown} means nothing in this file",
            )
        return outside, inside

    def _mended(self, piece: bytes, outside: bytes, columns: int) -> bytes:
        """Return a part as the server gets it."""
        blank = columns > 1 and (
            outside.startswith((self._eol, b"\r\n"))
            or _EMPTY_LINE[self._eol].search(outside) is not None
        )
        ends = b"\\" in outside and _END_OF_DATA in outside  # the first is much faster
        if not blank and not ends:
            return piece
        kept = []
        inside = self._inside
        for line in self._split(piece):
            if not inside:
                if self._is_blank(line, columns):
                    continue
                if line.rstrip(b"\r\n") == _END_OF_DATA:
                    quoted = self._quote + _END_OF_DATA + self._quote
                    line = line.replace(_END_OF_DATA, quoted)  # noqa: PLW2901 - the same line
            kept.append(line)
            inside ^= line.count(self._quote) % 2 == 1
        return b"".join(kept)

    def _is_blank(self, line: bytes, columns: int) -> bool:
        return columns > 1 and line in ((b"\r",) if self._eol == b"\r" else (b"\n", b"\r\n"))

    def _count(self, text: bytes) -> int:
        return text.count(self._eol)

    def _without_quotes(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Refuse the character that the server is told as the quote of a file that has none."""
        for piece in pieces:
            if self._quote in piece:
                line = self._lines + self._count(piece[: piece.index(self._quote)]) + 1
                character = f"U+{ord(self._quote):04X}"
                raise self.error(
                    line,
                    f"there is the control character {character}, which is not possible with"
                    " --quotechar none",
                )
            yield piece

    def _split(self, piece: bytes) -> list[bytes]:
        """Return the lines of a part, with their ends."""
        *lines, rest = piece.split(self._eol)
        return [*(line + self._eol for line in lines), *([rest] if rest else ())]

    # From the bytes of the file to whole lines in UTF-8

    def _in_whole_lines(self) -> Iterator[bytes]:
        blocks = self._decoded()
        start = b""
        for block in blocks:
            start += block
            found = _LINE_END.search(b"".join(start.split(self._quote)[::2]))
            if found is not None or len(start) > _LONGEST_ROW:
                break
        else:  # it is one line
            found = re.search(rb"[\r\n]", start)
        self._eol = b"\r" if found is not None and found.group() == b"\r" else b"\n"
        kept: list[bytes] = []
        for block in itertools.chain((start,), blocks):
            end = block.rfind(self._eol) + 1
            if end:
                yield b"".join([*kept, block[:end]])
                kept.clear()
            kept.append(block[end:])
        if rest := b"".join(kept):
            yield rest

    def _blocks(self) -> Iterator[bytes]:
        while block := self._file.read(_BLOCK):
            self.read += len(block)
            yield block

    def _decoded(self) -> Iterator[bytes]:
        blocks = self._blocks()
        start = next(blocks, b"")
        marked = encoding_of_mark(start)
        encoding = codecs.lookup(self._form.encoding or marked or "utf-8").name
        name = "utf-8" if encoding in _UTF_8 else encoding
        if marked is not None and marked not in (name, f"{name}-le", f"{name}-be"):
            message = (
                f"the file begins with the byte order mark of {marked}, and the encoding is {name}"
            )
            raise self.error(1, message)
        if encoding in _UTF_8:
            yield start.removeprefix(codecs.BOM_UTF8)
            yield from blocks
            return
        if encoding in ("utf-16", "utf-32"):
            encoding = marked or f"{encoding}-le"
        decoder = codecs.getincrementaldecoder(encoding)()
        text = self._text(decoder, start, encoding, 1).removeprefix("\ufeff")
        lines = 1 + text.count("\n")
        yield text.encode("utf-8", "surrogatepass")
        for block in blocks:
            text = self._text(decoder, block, encoding, lines)
            lines += text.count("\n")
            yield text.encode("utf-8", "surrogatepass")
        yield self._text(decoder, b"", encoding, lines, final=True).encode()

    def _text(
        self,
        decoder: codecs.IncrementalDecoder,
        block: bytes,
        encoding: str,
        line: int,
        *,
        final: bool = False,
    ) -> str:
        try:
            return decoder.decode(block, final)
        except UnicodeDecodeError as error:
            before = error.object[: error.start].decode(encoding, "replace")
            wrong = error.object[error.start : error.end].hex(" ")
            message = f"the file is not {encoding}: it has the bytes {wrong}"
        raise self.error(line + before.count("\n"), message)
