"""Which addresses a stranger's URL may lead to."""

from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# Named global by `ipaddress`, or by the one of older Pythons, and yet no place for pictures
NEVER = (
    IPv4Network("168.63.129.16/32"),  # Azure's host agent
    IPv4Network("192.0.0.0/24"),  # protocol assignments; the metadata of some clouds
    IPv4Network("192.88.99.0/24"),  # 6to4 relays, deprecated
    IPv6Network("3fff::/20"),  # documentation
)
UNICAST = IPv6Network("2000::/3")  # all that is assigned for the public Internet
NAT64 = IPv6Network("64:ff9b::/96")


def may_connect(address: str, allowed: Collection[Network] = ()) -> bool:
    """Whether Retina may download from an address: it is public, or in a network that the operator allowed.

    An IPv6 address that carries an IPv4 address (mapped, NAT64, 6to4) leads to that one and is judged by it.

    Args:
        address: as `getaddrinfo` answers it.
        allowed: networks that are not public and may be used all the same.
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    carried = _carried(parsed)
    if carried is not None:
        return may_connect(str(carried), allowed)
    return any(parsed in network for network in allowed) or _is_public(parsed)


def _carried(address: Address) -> IPv4Address | None:
    if isinstance(address, IPv4Address):
        return None
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv6Address) and address not in UNICAST:
        return False
    return address.is_global and not address.is_multicast and not any(address in network for network in NEVER)
