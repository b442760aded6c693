"""The drill of pools: each contender, a way of connecting that people use, carries traffic in a
process of its own.
"""
