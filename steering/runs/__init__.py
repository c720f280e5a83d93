"""What a finished run is, where it is kept, and how one is asked for and executed. The record side
needs no torch."""
