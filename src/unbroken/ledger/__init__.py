"""What a unit of work did, and what a statement may do: may it be run again, what is stored, what
is left on the session?
"""
