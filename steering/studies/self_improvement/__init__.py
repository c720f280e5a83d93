"""The doing side of the study `activation`: what its runs execute. The study itself opens no data."""
