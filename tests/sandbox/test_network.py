"""What `--net` is understood as: nothing that is doubtful opens anything."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from overlayrun.errors import UsageError
from overlayrun.sandbox.network import Network, NetworkKind, host_name, parse_net, proxy_environment

_LABEL = st.text("abx-_09", min_size=1, max_size=6).filter(lambda label: label.strip("-") == label)
_NAME = st.lists(_LABEL, min_size=1, max_size=4).map(lambda labels: ".".join([*labels, "example"]))


def _allow(names: str) -> Network:
    return parse_net(f"allow={names}", strict=False)


def test_a_missing_mode_is_the_default() -> None:
    assert parse_net(None, strict=False).kind is NetworkKind.HOST
    assert parse_net(None, strict=True).kind is NetworkKind.NONE


@pytest.mark.parametrize("text", ["allow=", "allow= "])
def test_an_empty_list_is_no_network(text: str) -> None:
    for strict in (False, True):
        network = parse_net(text, strict=strict)
        assert (network.kind, network.rules) == (NetworkKind.NONE, ())
        assert network.is_own
        assert not network.allows("allowed.example", 443)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "allow",
            "ALLOW=a.example",
            "Host",
            "none=",
            "host=x",
            "none,host",
            "private",
            "off",
            "*",
            "all",
        ),
        *("allow=,", "allow=a.example,", "allow=,a.example", "allow=a.example,,b.example", "allow=a example"),
        *("allow=*", "allow=*.", "allow=*.com", "allow=*.*.example", "allow=a.*.example", "allow=*a.example"),
        *("allow=a.example:", "allow=a.example:0", "allow=a.example:65536", "allow=a.example:x"),
        *("allow=a.example:+80", "allow=a.example:80:90", "allow=a.example:80-90", "allow=a.example:8O"),
        *(
            "allow=http://a.example",
            "allow=a.example/",
            "allow=u@a.example",
            "allow=.a.example",
            "allow=a..example",
        ),
        *(
            "allow=-a.example",
            "allow=a-.example",
            "allow=a.example..",
            "allow=a\0.example",
            "allow=a\n.example",
        ),
        *("allow=127.0.0.1", "allow=10.0.0.1:80", "allow=0x7f.1", "allow=2130706433", "allow=0x7f000001"),
        *("allow=[::1]", "allow=::1", "allow=a.0x1f", "allow=1.2.3.4.", "allow=bücher.example"),
        *(
            "allow=\u0430llowed.example",
            "allow=allowed。example",
            f"allow={'a' * 64}.example",
            f"allow={'a.' * 130}example",
        ),
    ],
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_net(text, strict=False)
    assert caught.value.hint
    assert caught.value.brief.isascii()
    assert caught.value.brief.isprintable()


def test_strict_has_no_host_network() -> None:
    with pytest.raises(UsageError, match="--strict"):
        parse_net("host", strict=True)
    assert parse_net("allow=a.example", strict=True).kind is NetworkKind.ALLOW


@pytest.mark.parametrize(
    ("rule", "name", "port", "expected"),
    [
        ("a.example", "a.example", 443, True),
        ("a.example", "a.example", 80, True),
        ("a.example", "a.example", 22, False),
        ("a.example:8443", "a.example", 8443, True),
        ("a.example:8443", "a.example", 443, False),
        ("a.example:*", "a.example", 22, True),
        ("A.Example.", "a.example", 443, True),
        ("a.example", "b.a.example", 443, False),
        ("a.example", "ba.example", 443, False),
        ("a.example", "a.example.evil.com", 443, False),
        ("*.a.example", "b.a.example", 443, True),
        ("*.a.example", "c.b.a.example", 443, True),
        ("*.a.example", "a.example", 443, False),
        ("*.a.example", "ba.example", 443, False),
        ("*.a.example:99", "b.a.example", 99, True),
        ("xn--bcher-kva.example", "xn--bcher-kva.example", 443, True),
    ],
)
def test_a_rule_is_an_exact_name_or_what_lies_below_it(
    rule: str, name: str, port: int, *, expected: bool
) -> None:
    assert _allow(rule).allows(name, port) is expected


@given(_NAME, _NAME, st.integers(1, 65535))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_a_name_is_allowed_by_itself_alone(allowed: str, asked: str, port: int) -> None:
    network = _allow(f"{allowed}:*")
    assert network.allows(allowed, port)
    assume(asked != allowed)
    for other in (asked, f"{asked}.{allowed}", f"{allowed}.{asked}", f"x{allowed}", f"{allowed}x"):
        assert not network.allows(other, port)


@given(_NAME)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_a_name_has_one_spelling(name: str) -> None:
    assert host_name(name) == host_name(name.upper()) == host_name(f"{name}.") == name
    assert host_name(host_name(name)) == name


@given(st.text("aZ09x.-_*:@ \0\t\n\r%[]/\\\u00e9\u0430\u3002\u212a", max_size=12))
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_every_other_text_is_refused_or_plain(text: str) -> None:
    try:
        name = host_name(text)
    except ValueError:
        return
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.")
    assert name == text.lower().removesuffix(".")


def test_tools_find_the_proxy_in_either_case() -> None:
    told = proxy_environment(3128)
    assert told["HTTPS_PROXY"] == told["https_proxy"] == told["http_proxy"] == "http://127.0.0.1:3128"
    assert "localhost" in told["no_proxy"].split(",")


def test_the_loopback_of_a_new_network_comes_up() -> None:
    code = (
        "import os, socket\n"
        "from overlayrun.kernel import abi, namespaces, syscalls\n"
        "from overlayrun.sandbox.network import bring_up_loopback\n"
        "ids = os.geteuid(), os.getegid()\n"
        "syscalls.unshare(abi.CLONE_NEWUSER | abi.CLONE_NEWNET)\n"
        "namespaces.map_identity(*ids)\n"
        "server = socket.create_server(('127.0.0.1', 3128))\n"
        "try:\n    socket.create_connection(('127.0.0.1', 3128))\n"
        "except OSError:\n    print('down')\n"
        "bring_up_loopback()\n"
        "socket.create_connection(('127.0.0.1', 3128))\n"
        "print('up')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["down", "up"], done.stderr
