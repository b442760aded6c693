"""A process of its own for each small app, which carries its traffic there; and the drill's end of
it.
"""
