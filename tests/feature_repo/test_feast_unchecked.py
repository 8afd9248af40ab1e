from collections.abc import Callable
from typing import Any

import typeguard
from feast import Entity, FeatureView
from feast.infra.offline_stores.snowflake_source import SnowflakeSource


def is_checked(function: Callable[..., Any]) -> bool:
    return "TypeCheckMemo" in function.__code__.co_names


def test_feast_starts_without_compiling_checks_of_types_into_itself() -> None:
    assert not any(is_checked(made.__init__) for made in (Entity, FeatureView, SnowflakeSource))


def test_whoever_else_asks_for_checks_of_types_gets_them() -> None:
    @typeguard.typechecked
    def plain(number: int) -> int:
        return number

    @typeguard.typechecked(collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS)
    def described(numbers: list[int]) -> int:
        return len(numbers)

    assert is_checked(plain)
    assert is_checked(described)
