"""The brain: pure decisions. No I/O, no clock, no threads, no asyncio; the time is an argument."""
