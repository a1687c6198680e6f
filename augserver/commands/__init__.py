"""What the command `augserver` does, by what it is about; `augserver.cli` puts it together."""
