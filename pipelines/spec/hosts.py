"""The hosts that a data set's addresses may lead to: its ``urls:``."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

HOST = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?")
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class Hosts:
    """Names of hosts, and addresses of networks; by default none."""

    names: frozenset[str] = frozenset()
    domains: tuple[str, ...] = ()
    """Each with a dot in front, as ``.example.com``, for all names that end in it."""

    networks: tuple[Network, ...] = field(default=())

    @classmethod
    def of(cls, urls: Iterable[str] | None) -> Hosts:
        """The hosts that ``urls:`` names.

        Raises:
            ValueError: One is neither a host, a bucket, a domain nor a network.
        """
        names, domains, networks = set(), [], []
        for one in urls or ():
            if network := _network(one):
                networks.append(network)
                continue
            name = _ascii(one)
            if not HOST.fullmatch(name):
                raise ValueError(
                    f"`urls:` names hosts without scheme, port and path, got {one!r:.60}; write "
                    "images.example.com, *.example.com, a bucket's name, or a network as "
                    "10.0.0.0/8"
                )
            if name.startswith("*."):
                domains.append(name[1:])
            else:
                names.add(name)
        return cls(frozenset(names), tuple(domains), tuple(networks))

    def has(self, host: str) -> bool:
        """Whether a host, given as in an address, is named; an IP address if its network is."""
        if address := _address(host):
            return any(address in network for network in self.networks)
        name = _ascii(host)
        return name in self.names or name.endswith(self.domains)

    def may_connect(self, address: str) -> bool:
        """Whether a named host may be at this IP address: a public one, or of a named network.

        Link-local and multicast addresses are refused even if they are named: clouds hand out a
        machine's credentials at the former.
        """
        found = _address(address)
        if found is None or found.is_link_local or found.is_multicast or found.is_unspecified:
            return False
        return found.is_global or any(found in network for network in self.networks)


def _network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text.strip("[]"))
    except ValueError:
        return None


def _address(text: str) -> Address | None:
    """The IP address, and of an IPv6 address that stands for an IPv4 one, the latter."""
    try:
        found = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address):
        if found in NAT64:
            return ipaddress.IPv4Address(int(found) & (2**32 - 1))
        return found.ipv4_mapped or found.sixtofour or (found.teredo or (0, found))[1]
    return found


def _ascii(host: str) -> str:
    """A host's name as DNS has it; unchanged where it cannot be one."""
    name = host.lower().rstrip(".")
    try:
        return name if name.isascii() else name.encode("idna").decode()
    except UnicodeError:
        return name
