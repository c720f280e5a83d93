"""Task adapters: what the framework steers. They import `steering`; `steering` never imports
them."""
