"""How reports are made and written."""
