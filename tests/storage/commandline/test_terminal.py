"""Names in files reach the terminal as text, whatever they hold."""

import logging

import pytest

from storage.commandline.command import LINES, OneLine, say
from storage.commandline.terminal import one_line, printable
from storage.errors import CorpusError

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egpj\udc80\x00\r.jpg"


def is_harmless(text: str) -> bool:
    return not any(ord(character) < 32 or 126 < ord(character) < 160 or character == "\u202e" for character in text)


def test_plain_names_of_any_language_stay_as_they_are() -> None:
    for name in ("a.jpg", "Straße 東京 é.png", "👍.jpg", "a b\\c"):
        assert one_line(name) == name


def test_what_would_move_the_cursor_is_written_out() -> None:
    assert one_line(HOSTILE).startswith("\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\u202egpj\\udc80\\x00\\r.jpg")
    assert one_line("a\nb\tc") == "a\\nb\\tc"
    assert printable("a\nb\tc\x1b") == "a\nb\tc\\x1b"


def test_nothing_of_ours_writes_a_name_raw(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    logger = logging.getLogger("pipeline.of_a_test")
    logger.addHandler(LINES)
    try:
        logger.warning("%s: left out %s", "x", HOSTILE + "\nERROR all is lost")
    finally:
        logger.removeHandler(LINES)
    with pytest.raises(SystemExit), OneLine("dfss-score"):
        raise CorpusError(HOSTILE)
    captured = capsys.readouterr()
    for line in (captured.out + captured.err).splitlines():
        assert is_harmless(line)
    assert "left out" in captured.err
    assert len([line for line in captured.err.splitlines() if "all is lost" in line and "left out" in line]) >= 1
    assert not any(line.startswith("ERROR all is lost") for line in captured.err.splitlines())
