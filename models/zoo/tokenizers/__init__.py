"""Methods that turn a signal into tokens and back."""
