"""Other kernels, on this machine: fetch them, boot them, judge them, bisect them."""
