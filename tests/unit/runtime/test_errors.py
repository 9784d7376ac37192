"""What a command says at its end."""

import contextlib
import os
import sys

import pytest

from viavsp_jax.runtime.errors import reported_to_user


@pytest.fixture
def closed_pipe():
    """The end to write to of one whose other end is closed."""
    reading, writing = os.pipe()
    os.close(reading)
    with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "w") as stream:
        yield stream


@pytest.mark.parametrize("size", [1, 100_000])  # kept until the end; written
@pytest.mark.parametrize("by_exit", [False, True])
def test_printing_to_a_pipe_that_nobody_reads_ends_without_a_word(closed_pipe, capsys, monkeypatch, size, by_exit):
    """As in `command | head`."""
    with monkeypatch.context() as m, pytest.raises(SystemExit) as caught:
        m.setattr(sys, "stdout", closed_pipe)
        with reported_to_user():
            print("x" * size)
            if by_exit:
                sys.exit(0)
    assert caught.value.code == 141 and not capsys.readouterr().err


def test_another_pipe_that_breaks_is_an_error(closed_pipe):
    with pytest.raises(BrokenPipeError), reported_to_user():
        closed_pipe.write("x")
        closed_pipe.flush()
