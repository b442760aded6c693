"""A process of its own for each small app, in which it carries its traffic; and the drill's end of
it.
"""
