"""A message is one printable line, whatever it quotes."""

from tv.errors import InputError, printable


def test_a_message_is_one_printable_line() -> None:
    assert str(InputError("é: no such  file")) == "é: no such file"
    assert str(InputError("key 'a\r\nb\u2028' and \x1b[31mred\x00\ud800")) == r"key 'a b ' and \x1b[31mred\x00\ud800"
    long = str(InputError("x" * 10_000_000))
    assert len(long) == 2_000 and long.endswith("x…")


def test_what_a_terminal_would_obey_is_spelled_out() -> None:
    assert printable("ε – “a”  b") == "ε – “a”  b"
    assert printable("\x1b[2J\n\x9b\u202e") == r"\x1b[2J\n\x9b\u202e"
