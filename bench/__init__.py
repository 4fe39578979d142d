"""Measure msrward against a bare C program, both in the same run and in turns.

Each line is one promise of speed. The C side (``bench.c``) runs the same guests and makes the same
accesses with straight ioctl(KVM_RUN) loops, and checks nothing; the Python side checks all. A
machine is never quiet, so only ratios count: each is the median over rounds of the two sides one
right after the other, and exits are measured in CPU time. ``scripts/bench`` is the command.
"""
