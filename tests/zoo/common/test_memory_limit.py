"""The one setting of what kernels may keep in memory."""

import pytest

from zoo import memory_limit
from zoo.common.memory import kept_bytes


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (12, 12),
        ("12", 12),
        ("3 KB", 3000),
        ("1.5KiB", 1536),
        ("4 GiB", 4 * 2**30),
        ("2 TB", 2 * 10**12),
    ],
)
def test_sizes_are_bytes_or_texts(size, expected, monkeypatch):
    monkeypatch.setenv("FINITE_WIDTH_MEMORY", str(size))
    assert kept_bytes() == expected
    with memory_limit(7):
        assert kept_bytes() == 7
        with memory_limit(size):
            assert kept_bytes() == expected
        assert kept_bytes() == 7
    assert kept_bytes() == expected


@pytest.mark.parametrize("size", [0, -1, "", "much", "4 GiB or so", "-2 GiB", "0 KiB"])
def test_what_is_no_size_is_refused_at_once(size):
    with pytest.raises(ValueError, match=r"`size` is .*expected a positive number of bytes"):
        memory_limit(size)


@pytest.mark.parametrize("size", [None, 1.5, True, [3]])
def test_other_types_are_refused(size, unchecked):
    with pytest.raises(TypeError, match=r"`size` is .*expected a positive number of bytes"):
        memory_limit(size)


def test_the_environment_is_named(monkeypatch):
    monkeypatch.setenv("FINITE_WIDTH_MEMORY", "half")
    with pytest.raises(ValueError, match="`FINITE_WIDTH_MEMORY` is 'half'"):
        kept_bytes()


def test_a_share_of_this_machine_otherwise(monkeypatch):
    monkeypatch.delenv("FINITE_WIDTH_MEMORY", raising=False)
    assert 2**26 < kept_bytes() < 2**50
