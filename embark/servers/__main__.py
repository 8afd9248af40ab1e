"""`python -m embark.servers` writes the checksums of the jars anew; review the difference like code."""

from embark.servers.java import write_manifest

write_manifest()
