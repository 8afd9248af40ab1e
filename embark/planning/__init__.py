"""How large an archive must be, and how it will do: a simulation of its look-ups, and what machines it takes."""
