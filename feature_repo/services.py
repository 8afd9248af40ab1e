"""Feature services that change over from one encoder's view to another's, and back: all of a service at once.

A switch is one write of the registry. It leaves a record in the service's tags: what the service was, so that it can be
that again, and what `catalog.py` declared, so that the next `feast apply` of the same declaration does not undo it.
"""

import base64
import json
from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from typing import Self

from feast import FeatureService, FeatureView
from feast.feature_view_projection import FeatureViewProjection
from feast.protos.feast.core.FeatureService_pb2 import FeatureService as FeatureServiceProto

from encoders.spec import TAG_PREFIX, SpecError

SWITCH_TAG = TAG_PREFIX + "switch"


class CannotSwitch(Exception):
    """A service cannot be switched as asked; the message says what it names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Switch:
    """The record of a switch.

    Attributes:
        old, new: the views.
        members: the views that the service named before, in order.
        before: the service's definition then: Feast's protobuf, in base64.
    """

    old: str
    new: str
    members: tuple[str, ...]
    before: str

    @classmethod
    def of(cls, service: FeatureService) -> Self | None:
        """The last switch of a service; None where it was not switched."""
        recorded = service.tags.get(SWITCH_TAG)
        if recorded is None:
            return None
        fields = json.loads(recorded)
        return cls(**fields | {"members": tuple(fields["members"])})

    @property
    def declares_now(self) -> list[str]:
        """The members as the switch left them."""
        return [self.new if member == self.old else member for member in self.members]


def members_of(service: FeatureService) -> list[str]:
    """The views that a service names, in order."""
    return [projection.name for projection in service.feature_view_projections]


def switched(service: FeatureService, old: str, new: FeatureView) -> FeatureService:
    """The service with `new` in the place of `old`: the same features, under the same aliases; to be applied.

    Raises:
        CannotSwitch: it does not name `old`, names both, or uses a feature that `new` has not.
    """
    members = members_of(service)
    if old not in members or new.name in members:
        named = ", ".join(members) or "no view"
        raise CannotSwitch(f"service {service.name!r} names {named}: {old} and not {new.name} is expected")
    proto = service.to_proto()
    record = Switch(
        old=old,
        new=new.name,
        members=tuple(members),
        before=base64.b64encode(proto.spec.SerializeToString()).decode(),
    )
    changed: FeatureService = FeatureService.from_proto(proto)
    changed.feature_view_projections = [
        _projected(service.name, each, new) if each.name == old else each for each in changed.feature_view_projections
    ]
    changed.tags = dict(changed.tags) | {SWITCH_TAG: json.dumps(asdict(record))}
    return changed


def switched_back(service: FeatureService, old: str, new: str) -> FeatureService:
    """The service as it was before it was switched from `old` to `new`; to be applied.

    Raises:
        CannotSwitch: its last switch was another one.
    """
    record = Switch.of(service)
    if record is None or (record.old, record.new) != (old, new):
        told = "was not switched" if record is None else f"was last switched from {record.old} to {record.new}"
        raise CannotSwitch(f"service {service.name!r} {told}: there is no switch from {old} to {new} to take back")
    before = FeatureServiceProto(meta=service.to_proto().meta)
    before.spec.ParseFromString(base64.b64decode(record.before))
    restored: FeatureService = FeatureService.from_proto(before)
    return restored


def kept(
    name: str, declared: Sequence[str], registered: FeatureService | None, views: Collection[str]
) -> Switch | None:
    """The switch of a registered service that a declaration of it must not undo or forget; None: there is none.

    Args:
        declared: the views that the declaration names.
        views: all that are declared.

    Raises:
        SpecError: the service was switched to a view that is not declared.
    """
    record = Switch.of(registered) if registered is not None else None
    if record is None or list(declared) not in (list(record.members), record.declares_now):
        return None  # the declaration was changed since, to something else: it holds
    missing = sorted(set(record.declares_now) - set(views))
    if missing:
        raise SpecError(
            f"service {name!r} was switched from {record.old} to {record.new}, and {', '.join(missing)} is not"
            " declared. Declare it, or take the switch back:"
            f" `embark migrate {record.old} {record.new} --service {name} --rollback`"
        )
    return record


def _projected(service: str, before: FeatureViewProjection, view: FeatureView) -> FeatureViewProjection:
    features = {feature.name: feature for feature in view.features}
    missing = sorted({feature.name for feature in before.features} - set(features))
    if missing:
        raise CannotSwitch(f"service {service!r} uses {', '.join(missing)}, which {view.name} has not")
    projection = copy(FeatureViewProjection.from_definition(view))
    projection.features = [features[feature.name] for feature in before.features]
    projection.name_alias, projection.join_key_map = before.name_alias, dict(before.join_key_map)
    return projection
