"""What is measured and how it is judged: pure arithmetic, without a clock or a socket."""
