"""Where the thinking is: frozen data in, a plan with reasons out. No I/O, no clock, no randomness, no logging."""
