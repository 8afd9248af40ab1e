"""Keys as an encoder's history names them."""

import pyarrow as pa
from feast import FeatureView

from encoders.keys import KeyRefused, canonical_key
from encoders.spec import EncoderSpec


def canonical_keys(view: FeatureView, keys: pa.Table) -> pa.Table:
    """The one column of `keys` in canonical form; null where one can name no input. Other views' keys as they are."""
    spec = EncoderSpec.from_tags(view.tags)
    if spec is None or keys.num_columns != 1 or not pa.types.is_string(keys.schema.field(0).type):
        return keys

    def canonical(key: str | None) -> str | None:
        try:
            return None if key is None else canonical_key(spec, key)
        except KeyRefused:
            return None

    encoded = keys.column(0).combine_chunks().dictionary_encode()
    names = pa.array([canonical(key) for key in encoded.dictionary.to_pylist()], type=pa.string())
    return pa.table([names.take(encoded.indices)], names=keys.column_names)
