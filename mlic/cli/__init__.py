"""The command line: it reads arguments, calls one function per command, and prints."""
