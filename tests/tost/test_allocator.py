"""The malloc setting is applied on glibc and harmless elsewhere."""

import ctypes
import platform
import sys

import pytest

from tost.allocator import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_applies_on_glibc_and_may_be_repeated() -> None:
    assert keep_freed_memory()
    assert keep_freed_memory()


def test_does_nothing_where_there_is_no_mallopt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
