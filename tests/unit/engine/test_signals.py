"""Signals that stop a stage cleanly."""

from __future__ import annotations

import os
import signal

import pytest

from cda.engine.signals import Stop
from cda.errors import Interrupted


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_is_a_question_that_is_answered_where_all_is_saved(name):
    stop = Stop()
    with stop.listening():
        stop.check()
        os.kill(os.getpid(), getattr(signal, name))
        assert stop.signal == getattr(signal, name)
        with pytest.raises(
            Interrupted, match=f"stopped by {name}; what is done is saved, start it again to go on"
        ):
            stop.check()


def test_a_second_ctrl_c_stops_at_once():
    stop = Stop()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_signal_handlers_are_restored_afterwards():
    before = [
        signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    ]
    with Stop().listening():
        os.kill(os.getpid(), signal.SIGINT)
    assert [
        signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    ] == before
