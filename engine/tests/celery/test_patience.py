"""Waits for the network end, however the peer behaves."""

import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest
from nightshift.celery.patience import PatientSocket, patience


@contextmanager
def connected():
    """Yield a patient socket, and the peer's end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield PatientSocket(ours), theirs


def read_for_ever(sock):
    while True:
        sock.recv(1)


def test_wait_for_a_silent_peer_ends():
    with connected() as (ours, _), patience(0.1), pytest.raises(TimeoutError, match="in time"):
        ours.recv(1)


def test_peer_that_sends_a_byte_now_and_then_does_not_prolong_the_wait():
    with connected() as (ours, theirs):

        def trickle():
            with suppress(OSError):
                while True:
                    theirs.sendall(b"x")
                    time.sleep(0.02)

        threading.Thread(target=trickle, daemon=True).start()
        with patience(0.2), pytest.raises(TimeoutError):
            read_for_ever(ours)


def test_peer_that_reads_nothing_does_not_hold_a_writer():
    with connected() as (ours, _), patience(0.1), pytest.raises(TimeoutError):
        ours.sendall(b"x" * 100_000_000)


def test_own_work_does_not_use_up_the_patience():
    with connected() as (ours, theirs), patience(0.1):
        theirs.sendall(b"x")
        time.sleep(0.3)
        assert ours.recv(1) == b"x"


def test_inner_patience_is_not_longer_than_what_the_outer_one_has_left():
    with patience(0.1) as outer:
        with connected() as (ours, _), patience(100), pytest.raises(TimeoutError):
            ours.recv(1)
        assert outer.left <= 0


def test_drivers_own_limit_holds_where_it_is_shorter():
    with connected() as (ours, _), patience(100):
        ours.settimeout(0.05)
        with pytest.raises(TimeoutError):
            ours.recv(1)
        assert ours.gettimeout() == 0.05


def test_socket_that_does_not_block_stays_so():
    with connected() as (ours, _), patience(100):
        ours.settimeout(0)
        with pytest.raises(BlockingIOError):
            ours.recv(1)
