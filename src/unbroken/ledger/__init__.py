"""The record of a unit of work, and the possible effects of a statement: may it be run again, which
writes are stored, and which leftovers are on the session?
"""
